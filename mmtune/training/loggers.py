"""Loggers of a run: always `RUN/metrics.csv`, TensorBoard where it is installed, and loggers that the user names."""

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

# requirements of Lightning's loggers: modules of which one must be installed, and the package to install
_NEEDS = {
    "TensorBoardLogger": (("tensorboard", "tensorboardX"), "tensorboard"),
    "WandbLogger": (("wandb",), "wandb"),
    "MLFlowLogger": (("mlflow",), "mlflow"),
    "CometLogger": (("comet_ml",), "comet-ml"),
    "NeptuneLogger": (("neptune",), "neptune"),
}


class TensorBoard(RunLogger):
    """Write Lightning's metrics to `RUN/tensorboard`, where a resumed run continues the same curves.

    Lightning's own logger opens its file before the first step of a resumed run is known, so it cannot remove the
    values that will be logged again.
    """

    def __init__(self, run: Path, csv: MetricsCsv) -> None:
        """Create the logger.

        Args:
            run: the run directory.
            csv: CSV logger that logs the same metrics just before this one; it holds the row of the checkpoint that a
                killed part of the run did not log.
        """
        super().__init__()
        self.folder = run / "tensorboard"
        self._csv = csv
        self._writer: Any = None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of a step; the first ones of a resumed run replace all values from that step on."""
        if self._writer is None:
            self._open(step or 0)
        self._write(metrics, step or 0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; if a resumed run had no step left to log, write the checkpoint's values first."""
        if self._writer is None and (row := self._csv.filled_in) is not None:
            self._open(row["step"])
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> None:
        # TensorBoard reads files in the order of their names, which contain the second: two of one second may swap
        while any(f".{int(time.time())}." in file.name for file in self.folder.glob("events.*")):
            time.sleep(0.02)
        self._writer = _summary_writer()(str(self.folder), purge_step=step)
        if (row := self._csv.filled_in) is not None:
            self._write({name: value for name, value in row.items() if name != "step"}, row["step"])

    def _write(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run resumed from a checkpoint does not log the steps before it again


def choose_loggers(run: Path, wanted: Any) -> list[Logger]:
    """Return the loggers of a training run.

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
    """Return the loggers that the user named, as a list."""
    if isinstance(wanted, Logger):
        return [wanted]
    return list(wanted) if isinstance(wanted, Sequence) else []


def check_loggers(wanted: Any) -> None:
    """Check that the packages of the loggers in a config are installed, before the loggers are created.

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
