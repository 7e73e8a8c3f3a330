"""`mmtune compare`: differences between evaluations, their confidence intervals, and the flipped samples."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from mmtune.analysis.compare import compare
from mmtune.analysis.comparison import write_json_file
from mmtune.analysis.pages import write_comparison_page
from mmtune.analysis.tables import comparison_table, evaluations_table, flips_table
from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.text import visible


@dataclass
class CompareOptions:
    """Compare evaluations of the same rows with the first of them: differences, their error, and what flipped.

    Attributes:
        evaluations: folders that `mmtune eval` wrote, the baseline first; or runs with one such folder inside.
        out: a folder for comparison.json, with every flipped sample; nothing is written without it.
        html: write comparison.html to --out too, a page of one file.
        tasks: only these tasks, separated by commas.
        flips: how many flipped samples of each task are shown here.
        seed: seed of the bootstrap that estimates the intervals.
    """

    evaluations: list[str] = field(default_factory=list)
    out: str | None = None
    html: bool = False
    tasks: str | None = None
    flips: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--flips", self.flips), ("--seed", self.seed)):
            if value < 0:
                raise UserError(f"{flag} {value}: must be at least 0")
        if self.html and self.out is None:
            raise UserError("--html: say where to with --out DIR")


def main(argv: list[str]) -> int:
    """Compare evaluations, print the tables, and write the requested files; return the exit status 0.

    Raises:
        UserError: the evaluations cannot be compared, or a file of theirs is missing or damaged, or --out cannot be
            written.
    """
    options = parse(build_parser("compare", CompareOptions, positional="evaluations"), CompareOptions, argv)
    names = None
    if options.tasks is not None:
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    comparison = compare(options.evaluations, tasks=names, seed=options.seed)
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    console.print(evaluations_table(comparison))
    for against in comparison.against:
        console.print()
        console.print(comparison_table(comparison, against))
        if options.flips and any(task.flips for task in against.tasks):
            console.print()
            console.print(flips_table(comparison, against, options.flips))
    console.print()
    for line in comparison.method():
        console.print(visible(line))
    if options.out is not None:
        out = Path(options.out)
        try:
            write_json_file(comparison, out / "comparison.json")
            if options.html:
                write_comparison_page(comparison, out / "comparison.html")
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
        console.print(f"Every flipped sample: {visible(str(out / 'comparison.json'))}", soft_wrap=True)
        if options.html:
            console.print(f"The page: {visible(str(out / 'comparison.html'))}", soft_wrap=True)
    return 0
