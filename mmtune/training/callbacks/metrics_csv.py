"""`RUN/metrics.csv`: one row a logged step, kept across resumes."""

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
    """A logger whose files lie in the run directory, which says which run it is."""

    @property
    def name(self) -> str:
        """Part of Lightning's interface; the run directory says which run it is."""
        return ""

    @property
    def version(self) -> str:
        """Part of Lightning's interface."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""


class MetricsCsv(RunLogger):
    """Writes what Lightning logs to one CSV file.

    Lightning's own CSVLogger deletes the file of an earlier part of the run. This one goes on from it, and leaves out
    rows of steps that a resumed run is about to repeat.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.file = run / "metrics.csv"
        # the row of the step that a checkpoint was saved after: a run killed between the two has not written it
        self.saved: dict[str, Any] | None = None
        self.filled_in: dict[str, Any] | None = None  # that row, once it was found to be missing
        self._columns: list[str] = []
        self._last: dict[str, Any] | None = None
        self._last_at: int | None = None  # where in the file the last row begins
        self._read = False

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.file.parent)

    save_dir = log_dir

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or columns to the last row where it is the same step's."""
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
        """Nothing: rows are written as they come."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the checkpoint's row where a resumed run had no step left to log."""
        if not self._read and self.saved is not None:
            self._keep_before(self.saved["step"] + 1)

    def _keep_before(self, step: int) -> None:
        """Take over an earlier part's rows of earlier steps; a row cut off in the middle of writing is none."""
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
        """Append the last row, or write it over the shorter one in its place; a new column writes the file anew."""
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
