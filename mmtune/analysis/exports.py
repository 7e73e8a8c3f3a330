"""Tables of a report as CSV, in full precision, and as LaTeX, rounded for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmtune.analysis.plots import flop_unit
from mmtune.analysis.study import Score, ScoredVariant, Study, cheaper
from mmtune.common.files import atomic_path
from mmtune.common.text import visible

Cell = str | int | float | None
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": "{-}",
    "[": "{[}",
    "]": "{]}",
    **{character: f"\\{character}" for character in "$&#%_"},
}


def write_tables(study: Study, folder: Path, baseline: ScoredVariant | None) -> list[Path]:
    """Write `scores` and `costs`, each as `.csv` and `.tex`, and return their paths."""
    texts = {
        "scores.csv": csv_text(_score_rows(study)),
        "scores.tex": _scores_latex(study),
        "costs.csv": csv_text(_cost_rows(study, baseline)),
        "costs.tex": _costs_latex(study, baseline),
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def csv_text(rows: Sequence[Sequence[Cell]]) -> str:
    """Format rows as CSV (RFC 4180), with numbers as Python prints them, so that reading gives the same number.

    Text that a spreadsheet would run as a formula (`=`, `+`, `-`, `@` at its start) gets an apostrophe in front, as
    OWASP's page on CSV injection advises. Control characters are made visible.
    """
    stream = io.StringIO()
    csv.writer(stream).writerows([[_plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])
    return stream.getvalue()


def latex(text: str) -> str:
    """Escape text for LaTeX; line breaks and other whitespace become single spaces."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible(text).split()))


def _plain(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def _score_rows(study: Study) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["variant", "set", "modality", "rows", "seeds", "score", "stderr", "averaged"]]
    for variant in study.variants:
        results = variant.runs[0].results["tasks"]
        for task, modality in study.tasks.items():
            score, used = variant.tasks[task], "yes" if task in study.averaged else "no"
            rows.append([variant.name, task, modality, results[task]["n"], score.seeds, score.mean, score.stderr, used])
        for average, score in variant.averages.items():
            rows.append([variant.name, "average", average, None, score.seeds, score.mean, score.stderr, None])
    return rows


def _cost_rows(study: Study, baseline: ScoredVariant | None) -> list[list[Cell]]:
    tokens = ("text", "supervised", "image", "pad")
    parts = ("language", "projector", "tower")
    head = ["variant", "runs", "tuned", "rows", "seconds", "flops", *(f"flops_{part}" for part in parts)]
    head += [*(f"tokens_{kind}" for kind in tokens), "tower_passes", "cheaper_than", "times_cheaper_at_equal_rows"]
    head += [f"times_cheaper_at_same_{average}" for average in study.averages]
    rows: list[list[Cell]] = [[*head]]
    for variant in study.variants:
        if variant.cost is None:
            continue
        cost = variant.cost
        row: list[Cell] = [
            variant.name,
            len(variant.runs),
            "yes" if variant.tuned else "no",
            cost.samples,
            cost.seconds,
        ]
        row += [cost.flops, *(cost.flops_by_part.get(part, 0) for part in parts)]
        row += [*(cost.tokens.get(kind, 0) for kind in tokens), cost.tower_passes]
        if baseline is not None:
            against = cheaper(variant, baseline)
            row += [baseline.name, against.at_equal_samples]
            row += [against.at_same_score[average] for average in study.averages]
        rows.append(row + [None] * (len(head) - len(row)))
    return rows


def _tabular(columns: str, head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> str:
    """Return a table in the style of LaTeX's booktabs, with a rule between groups; cells are already LaTeX."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    bodies = [[line(row) for row in group] for group in groups if group]
    body: list[str] = []
    for i, lines in enumerate(bodies):
        body += [r"\midrule"] * (i > 0) + lines
    return "\n".join(
        [
            r"% \usepackage{booktabs,textcomp}, and \usepackage[T1]{fontenc}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _scores_latex(study: Study) -> str:
    def row(name: str, score_of: Callable[[ScoredVariant], Score]) -> list[str]:
        scores = [score_of(variant) for variant in study.variants]
        return [name, *(rf"${100 * score.mean:.1f} \pm {100 * score.stderr:.1f}$" for score in scores)]

    def task_row(task: str) -> list[str]:
        return row(latex(task) + ("" if task in study.averaged else r"$^{*}$"), lambda variant: variant.tasks[task])

    def average_row(average: str) -> list[str]:
        return row(f"{average}, average", lambda variant: variant.averages[average])

    groups = [[task_row(task) for task, of in study.tasks.items() if of == one] for one in _modalities(study)]
    groups.append([average_row(average) for average in study.averages])
    note = (
        [] if len(study.averaged) == len(study.tasks) else ["% *: in no average: seen in training, or not comparable"]
    )
    table = _tabular(
        "l" + "r" * len(study.variants), [r"set, \%", *(latex(variant.name) for variant in study.variants)], groups
    )
    return "\n".join([*note, table])


def _modalities(study: Study) -> list[str]:
    return list(dict.fromkeys(study.tasks.values()))


def _costs_latex(study: Study, baseline: ScoredVariant | None) -> str:
    known = [(variant, variant.cost) for variant in study.variants if variant.cost is not None]
    size, unit = flop_unit(max((cost.flops for _, cost in known), default=0.0))
    against = f"cheaper than {latex(baseline.name)}" if baseline is not None else "cheaper"
    head = ["variant", "rows", "text tokens", "image tokens", "tower passes", unit, "seconds", against]

    def times(variant: ScoredVariant) -> str:
        found = cheaper(variant, baseline).at_equal_samples if baseline is not None else None
        return "" if found is None else rf"${found:.2f}\times$"

    def count(value: Any) -> str:
        return f"{value:,.0f}"

    rows = []
    for variant, cost in known:
        counts = (cost.samples, cost.tokens.get("text", 0), cost.tokens.get("image", 0), cost.tower_passes)
        figures = (f"{cost.flops / size:,.2f}", count(cost.seconds), times(variant))
        rows.append([latex(variant.name), *map(count, counts), *figures])
    return _tabular("l" + "r" * (len(head) - 1), head, [rows])
