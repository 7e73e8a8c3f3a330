"""Lightning callback by which a run writes down whether evaluation sets are unseen by what it trains on."""

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
    """Writes `unseen.json` into the run directory before the first step. Of several processes, the first does.

    Args:
        suite: a suite, or the name or file of a suite or task.
        data_root: a folder with `hub/…`; None for the hub.

    Raises:
        UserError: there is no such suite or folder.
    """

    def __init__(self, suite: str | Path | Suite, data_root: str | Path | None = None) -> None:
        self.suite = suite if isinstance(suite, Suite) else load_suite(suite)
        self.data_root = data_root
        if data_root is not None and not Path(data_root).expanduser().is_dir():
            raise UserError(f"data_root {data_root}: no such folder")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the rows that will be trained on, once the data is drawn."""
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
    """The rows of the sources that are trained on; the data module keeps their tokens alone."""
    bad_rows = BadRows("skip")  # those that the data module left out are not among `rows`
    for source in [*data.mixture.text, *data.mixture.visual]:
        for conversation in read_conversations(source, image_root=data.mixture.image_root, bad_rows=bad_rows):
            if conversation.where in rows:
                yield conversation
