"""`mmtune report`: one page about runs, with scores beside training costs, losses, settings and answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmtune.analysis.report import SAMPLES_PER_TASK, write_report
from mmtune.analysis.variants import read_variants
from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.text import visible


@dataclass
class ReportOptions:
    """Write one self-contained page about runs: scores beside cost, losses, settings, searchable answers.

    Attributes:
        runs: run directories with one evaluation inside, evaluations, or what `mmtune reproduce` wrote; LABEL=RUN names
            one, and several of one label are seeds of one variant. Answers are compared with those of the first.
        out: the file of the page.
        plots: a folder for the pictures as SVG and PNG.
        tables: a folder for the tables as CSV and LaTeX.
        title: title of the page.
        baseline: label of the variant whose cost the others are compared with; by default the most costly tuned one.
        samples: at most so many answers of each set are on the page.
    """

    runs: list[str] = field(default_factory=list)
    out: str = "report.html"
    plots: str | None = None
    tables: str | None = None
    title: str | None = None
    baseline: str | None = None
    samples: int = SAMPLES_PER_TASK

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UserError(f"--samples {self.samples}: must be at least 0")
        if Path(self.out).is_dir():
            raise UserError(f"--out {self.out}: is a folder; name a file, such as {Path(self.out) / 'report.html'}")


def main(argv: list[str]) -> int:
    """Write the page, and the requested plots and tables; return the exit status 0.

    Raises:
        UserError: a run cannot be read, or a file cannot be written.
    """
    parser = build_parser("report", ReportOptions, positional="runs", short={"out": "-o"})
    options = parse(parser, ReportOptions, argv)
    variants = read_variants(options.runs)
    title = options.title or " · ".join(variant.name for variant in variants)
    plots, tables = (None if folder is None else Path(folder) for folder in (options.plots, options.tables))
    try:
        warnings = write_report(
            variants,
            Path(options.out),
            title=title,
            baseline=options.baseline,
            samples=options.samples,
            plots=plots,
            tables=tables,
        )
    except OSError as error:
        raise UserError(f"{error.filename or options.out}: cannot be written: {error.strerror}") from None
    for warning in warnings:
        print(f"mmtune: warning: {visible(warning)}", file=sys.stderr)
    for what, written in (("The page", options.out), ("Pictures", options.plots), ("Tables", options.tables)):
        if written is not None:
            print(f"{what}: {visible(written)}")
    return 0
