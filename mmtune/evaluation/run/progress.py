"""How far an evaluation is, on stderr: a bar on a terminal, a line per task elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Bar
from rich.text import Text


class _Rate(ProgressColumn):
    """Rows, or photos, per second."""

    def render(self, task: Bar) -> Text:
        """The rate, or nothing while it is unknown."""
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "", style="dim")


class Reporter:
    """Tells of the tasks of an evaluation, or of other long work on rows. Silent if not `shown`."""

    def __init__(self, *, shown: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    @contextmanager
    def task(self, name: str, rows: int | None, done: int, *, unit: str = "rows") -> Iterator[Reporter]:
        """While a task runs of so many rows (None: who knows how many), of which some were done before."""
        if not self._console.is_terminal or self._console.quiet:
            yield self
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress, self._bar = progress, progress.add_task(name, total=rows, completed=done, unit=unit)
            try:
                yield self
            finally:
                self._progress = None

    def reached(self, rows: int) -> None:
        """So many rows are answered by now."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=rows)

    def say(self, line: str) -> None:
        """Print a line above the bar, which the command's `print` makes harmless."""
        if not self._console.quiet:
            print(line, file=sys.stderr)
