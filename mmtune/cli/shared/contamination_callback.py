"""`mmtune fit --unseen SUITE`: the run writes down whether the suite's sets are unseen by what it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl

from mmtune.cli.shared.contamination import suite_named, summary
from mmtune.common.errors import UserError
from mmtune.common.files import write_json
from mmtune.data.conversation import Conversation
from mmtune.data.datamodule import InstructionData
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.contamination.check import check_contamination


def contamination_checks(run: Path, suite: str | None, data_root: str | None) -> list[pl.Callback]:
    """The callbacks that the flags `--unseen` and `--unseen_data_root` ask for: one or none.

    Raises:
        UserError: there is no such suite or folder.
    """
    if suite is None and data_root is not None:
        raise UserError(f"--unseen_data_root {data_root}: says where the rows of --unseen SUITE are; give that too")
    return [] if suite is None else [ContaminationCheck(run, suite, data_root)]


class ContaminationCheck(pl.Callback):
    """Writes `RUN/unseen.json` before the first step. Of several processes, the first does.

    Args:
        run: the run directory.
        suite: a suite's or task's name, or its file.
        data_root: a folder with `hub/…`; None for the hub.

    Raises:
        UserError: there is no such suite or folder.
    """

    def __init__(self, run: Path, suite: str, data_root: str | None) -> None:
        self.run, self.suite, self.data_root = run, suite_named(suite), data_root
        if data_root is not None and not Path(data_root).expanduser().is_dir():
            raise UserError(f"--unseen_data_root {data_root}: no such folder")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the rows that will be trained on, once the data is drawn."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = data.trained_rows()
        report = check_contamination(
            _conversations(data, rows), self.suite, data_root=self.data_root, progress=True, total=len(rows)
        )
        write_json(self.run / "unseen.json", report.to_dict())
        print(f"{summary(report)}; {self.run}/unseen.json")


def _conversations(data: InstructionData, rows: frozenset[str]) -> Iterator[Conversation]:
    """The rows of the sources that are trained on; the data module keeps their tokens alone."""
    bad_rows = BadRows("skip")  # those that the data module left out are not among `rows`
    for source in [*data.mixture.text, *data.mixture.visual]:
        for conversation in read_conversations(source, image_root=data.mixture.image_root, bad_rows=bad_rows):
            if conversation.where in rows:
                yield conversation
