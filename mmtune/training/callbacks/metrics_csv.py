"""Logger of `RUN/metrics.csv`: one row per logged step, kept when a run is resumed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mmtune.common.disk import naming
from mmtune.common.files import atomic_path


class RunLogger(Logger):
    """Logger that writes to the run directory, and needs no name or version of the run."""

    @property
    def name(self) -> str:
        """Empty name, required by Lightning; the run directory identifies the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty version, required by Lightning."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml contains the hyperparameters."""


class MetricsCsv(RunLogger):
    """Write Lightning's metrics to one CSV file.

    Lightning's own CSVLogger deletes the file of an earlier part of the run. This one continues the file, and removes
    the rows of steps that a resumed run will repeat.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.file = run / "metrics.csv"
        # row of the step after which a checkpoint was saved: a run killed just after saving has not written it
        self.saved: dict[str, Any] | None = None
        self.filled_in: dict[str, Any] | None = None  # that row, once it was found to be missing
        self._columns: list[str] = []
        self._last: dict[str, Any] | None = None
        self._last_at: int | None = None  # offset of the last row in the file
        self._read = False

    @property
    def log_dir(self) -> str:
        """Path of the run directory."""
        return str(self.file.parent)

    save_dir = log_dir

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or add columns to the last row if it has the same step."""
        step = step or 0
        if not self._read:
            self._read = True
            self._keep_before(step)
        if self._last is not None and self._last["step"] == step:
            self._last.update(metrics)
        else:
            self._last, self._last_at = {"step": step, **metrics}, None
        self._write_last()

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: each row is written when it is logged."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the checkpoint's row if a resumed run had no step left to log."""
        if not self._read and self.saved is not None:
            self._keep_before(self.saved["step"] + 1)

    def _keep_before(self, step: int) -> None:
        """Keep the rows of an earlier part before this step; an incompletely written row is removed."""
        rows = [row for row in self._rows() if int(row["step"]) < step]
        last = int(rows[-1]["step"]) if rows else -1
        if self.saved is not None and last < self.saved["step"] < step:
            self.filled_in = self.saved
            rows.append(self.saved)
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._write_all(rows)

    def _rows(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        with self.file.open(newline="") as stream:
            lines = [line for line in stream if line.endswith("\n")]
        return [row for row in csv.DictReader(lines) if None not in row.values() and (row.get("step") or "").isdigit()]

    def _write_last(self) -> None:
        """Append the last row, or overwrite its shorter version; a new column rewrites the whole file."""
        assert self._last is not None
        if new := [name for name in self._last if name not in self._columns]:
            self._columns += new
            rows = self._rows()
            if self._last_at is not None:
                rows.pop()
            self._write_all(rows)
            self._last_at = None
        with naming(self.file), self.file.open("r+", newline="") as stream:
            stream.seek(0, io.SEEK_END)
            if self._last_at is None:
                self._last_at = stream.tell()
            stream.seek(self._last_at)
            csv.DictWriter(stream, self._columns, restval="", lineterminator="\n").writerow(self._last)
            stream.truncate()

    def _write_all(self, rows: list[dict[str, Any]]) -> None:
        with atomic_path(self.file) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns, restval="", lineterminator="\n")
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)
