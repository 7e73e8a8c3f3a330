"""`mmtune data FILE… --unseen SUITE`: overlap of training rows with an evaluation suite."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmtune.common.errors import UserError
from mmtune.common.text import one_line, visible
from mmtune.data.conversation import Conversation
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.contamination.check import ContaminationReport, check_contamination
from mmtune.evaluation.tasks.suite import Suite, load_suite

_LISTED = 20
_STYLES = {"unseen": "green", "seen": "red", "unchecked": "yellow"}


def run(files: Sequence[str], suite: str, *, data_root: str | None, image_root: str | None, as_json: bool) -> int:
    """Compare training files with a suite, and print the overlap as tables or JSON; return the exit status 0.

    Rows that cannot be used are counted, and not compared.

    Raises:
        UserError: a file, suite or folder is missing, or no set of the suite can be compared.
    """
    chosen = suite_named(suite)
    for source in files:  # report a missing file before the evaluation is read
        next(_rows([source], image_root, BadRows("skip")), None)
    # counting is much faster than comparing, and allows an estimate of the remaining time on a terminal
    total = sum(1 for _ in _rows(files, image_root, BadRows("skip"))) if sys.stderr.isatty() else None
    bad_rows = BadRows("skip")
    report = check_contamination(
        _rows(files, image_root, bad_rows), chosen, data_root=data_root, progress=True, total=total
    )
    reasons = [check.reason for check in report.sets.values() if check.verdict == "unchecked"]
    if len(reasons) == len(report.sets):
        raise UserError(f"--unseen {suite}: none of its sets can be compared; the first: {reasons[0]}")
    if as_json:
        left_out = {"count": len(bad_rows.skipped), "messages": bad_rows.skipped}
        sys.stdout.write(json.dumps({**report.to_dict(), "bad_rows": left_out}, indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 110)
    with console.capture() as captured:
        _print(console, report, bad_rows)
    sys.stdout.write(captured.get())  # rich itself exits with 1 when the reader (head, less) closes the pipe
    return 0


def suite_named(name: str) -> Suite:
    """Load the suite that `--unseen` names.

    Raises:
        UserError: there is no such suite, or its file is invalid.
    """
    try:
        return load_suite(name)
    except UserError as error:
        raise UserError(f"--unseen: {error}") from None


def _rows(files: Sequence[str], image_root: str | None, bad_rows: BadRows) -> Iterator[Conversation]:
    for source in files:
        yield from read_conversations(source, image_root=image_root, bad_rows=bad_rows)


def _print(console: Console, report: ContaminationReport, bad_rows: BadRows) -> None:
    console.print(_sets(report))
    for name, check in report.sets.items():
        if check.reason is not None:
            console.print(Text(visible(f"{name} is unchecked: {check.reason}"), style="yellow"), soft_wrap=True)
        if check.undecoded:
            line = f"{name}: {check.undecoded} photos cannot be decoded; their bytes alone were compared"
            console.print(Text(visible(line), style="yellow"), soft_wrap=True)
    if report.undecoded:
        line = f"{report.undecoded} photos of the training rows cannot be read or decoded"
        console.print(Text(line, style="yellow"))
    if bad_rows.skipped:
        count, first = len(bad_rows.skipped), bad_rows.skipped[0]
        line = f"rows that cannot be used, and were not compared: {count}; the first: {first}"
        console.print(Text(visible(line), style="yellow"), soft_wrap=True)
    for hit in report.hits[:_LISTED]:
        where = f"{hit.task}, row {hit.task_row} ⟷ {hit.source}, row {hit.row}: {hit.kind}"
        console.print(Text(visible(where)), soft_wrap=True)
        console.print(Text(f"  {one_line(hit.overlap, 300)}", style="dim"), soft_wrap=True)
    if len(report.hits) > _LISTED:
        console.print(Text(f"… and {len(report.hits) - _LISTED} more pairs of rows; --json lists all", style="dim"))
    console.print(Text(report.summary(), style="bold"), soft_wrap=True)


def _sets(report: ContaminationReport) -> Table:
    table = Table(title=Text(f"Is {visible(report.suite)} unseen?"), title_justify="left", show_edge=False)
    table.add_column("set")
    for heading in ("rows", "too short", "hit", "by text", "by question", "by photo"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for name, check in report.sets.items():
        kinds = dict(check.kinds)
        text, question = kinds.pop("text", 0), kinds.pop("question", 0)
        images = len({h.task_row for h in report.hits if h.task == name and h.kind in kinds})
        figures = ["–"] * 6
        if check.rows:
            counts = (check.uncompared, check.hit_rows, text, question, images)
            figures = [str(check.rows), *(str(count or "–") for count in counts)]
        table.add_row(Text(visible(name)), *figures, Text(check.verdict, style=_STYLES[check.verdict]))
    return table
