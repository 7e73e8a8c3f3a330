"""Lightning callback that compares the training rows of a run with evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl

from mmtune.common.errors import UserError
from mmtune.common.files import write_json
from mmtune.data.conversation import Conversation
from mmtune.data.datamodule import InstructionData
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.contamination.check import check_contamination
from mmtune.evaluation.tasks.suite import Suite, load_suite


class ContaminationCheck(pl.Callback):
    """Writes `unseen.json`, the overlap of training rows and a suite, into the run directory before the first step.

    Of several processes, only the first writes it.

    Args:
        suite: a suite, or the name or file of a suite or task.
        data_root: folder that contains `hub/…`; None reads the sets from the hub.

    Raises:
        UserError: the suite or the folder does not exist, or the suite's file is wrong.
    """

    def __init__(self, suite: str | Path | Suite, data_root: str | Path | None = None) -> None:
        self.suite = suite if isinstance(suite, Suite) else load_suite(suite)
        self.data_root = data_root
        if data_root is not None and not Path(data_root).expanduser().is_dir():
            raise UserError(f"data_root {data_root}: no such folder")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the rows of the training set with the suite, in stage `fit`, and write the report."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = data.trained_rows()
        report = check_contamination(
            _conversations(data, rows), self.suite, data_root=self.data_root, progress=True, total=len(rows)
        )
        file = Path(trainer.default_root_dir) / "unseen.json"
        write_json(file, report.to_dict())
        print(f"{report.summary()}; {file}")


def _conversations(data: InstructionData, rows: frozenset[str]) -> Iterator[Conversation]:
    """Yield the conversations of the training set, read again: the data module keeps only their tokens."""
    bad_rows = BadRows("skip")  # rows that the data module skipped are not in `rows` either
    for source in [*data.mixture.text, *data.mixture.visual]:
        for conversation in read_conversations(source, image_root=data.mixture.image_root, bad_rows=bad_rows):
            if conversation.where in rows:
                yield conversation
