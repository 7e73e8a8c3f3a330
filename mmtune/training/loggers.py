"""Where training logs to: always `RUN/metrics.csv`, TensorBoard where it is installed, and what the user names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mmtune.common.errors import UserError
from mmtune.training.callbacks.metrics_csv import MetricsCsv, RunLogger

# what a logger of Lightning's needs: the modules of which one must be there, and what to install
_NEEDS = {
    "TensorBoardLogger": (("tensorboard", "tensorboardX"), "tensorboard"),
    "WandbLogger": (("wandb",), "wandb"),
    "MLFlowLogger": (("mlflow",), "mlflow"),
    "CometLogger": (("comet_ml",), "comet-ml"),
    "NeptuneLogger": (("neptune",), "neptune"),
}


class TensorBoard(RunLogger):
    """Writes what Lightning logs to `RUN/tensorboard`, where a resumed run goes on with the same curves.

    Lightning's own logger opens its file before it is known which step a resumed run begins with, and so cannot take
    back the values that will be logged again.
    """

    def __init__(self, run: Path, csv: MetricsCsv) -> None:
        """
        Args:
            run: the run directory.
            csv: logs the same just before this one, and knows what the killed part of a resumed run did not.
        """
        super().__init__()
        self.folder = run / "tensorboard"
        self._csv = csv
        self._writer: Any = None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of a step; the first of a resumed run take the place of all from that step on."""
        if self._writer is None:
            self._open(step or 0)
        self._write(metrics, step or 0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the checkpoint's values where a resumed run had no step left to log, and close the file."""
        if self._writer is None and (row := self._csv.filled_in) is not None:
            self._open(row["step"])
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> None:
        # TensorBoard reads files in the order of their names, which a second decides: two of one second may be swapped
        while any(f".{int(time.time())}." in file.name for file in self.folder.glob("events.*")):
            time.sleep(0.02)
        self._writer = _summary_writer()(str(self.folder), purge_step=step)
        if (row := self._csv.filled_in) is not None:
            self._write({name: value for name, value in row.items() if name != "step"}, row["step"])

    def _write(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run that goes on from a checkpoint does not log again what led up to it


def choose_loggers(run: Path, wanted: Any) -> list[Logger]:
    """The loggers of a training run.

    Args:
        run: the run directory.
        wanted: `--trainer.logger`: a logger or several, None or True for TensorBoard where it is installed, False for
            none beside metrics.csv.
    """
    csv = MetricsCsv(run)
    if wanted in (None, True):
        return [csv, TensorBoard(run, csv)] if _installed("TensorBoardLogger") else [csv]
    return [csv, *named_loggers(wanted)]


def named_loggers(wanted: Any) -> list[Logger]:
    """The loggers that the user named."""
    if isinstance(wanted, Logger):
        return [wanted]
    return list(wanted) if isinstance(wanted, Sequence) else []


def check_loggers(wanted: Any) -> None:
    """Look for the packages of the loggers in a config, before they are made.

    Raises:
        UserError: one is not installed.
    """
    for entry in wanted if isinstance(wanted, list) else [wanted]:
        name = str(getattr(entry, "class_path", "")).rpartition(".")[2]
        if name in _NEEDS and not _installed(name):
            raise UserError(f"--trainer.logger {name}: needs a package; run: pip install {_NEEDS[name][1]}")


def _summary_writer() -> Any:
    if find_spec("tensorboard") is None:
        from tensorboardX import SummaryWriter
    else:
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def _installed(name: str) -> bool:
    return any(find_spec(module) is not None for module in _NEEDS[name][0])
