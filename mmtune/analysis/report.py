"""A self-contained page about variants: scores beside cost, answers side by side, losses, settings, versions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.analysis.exports import write_tables
from mmtune.analysis.pages import embedded_json, write_page
from mmtune.analysis.plots import DARK, DARK_NARROW, LIGHT, LIGHT_NARROW, TITLES, flop_unit, svg_figures, write_plots
from mmtune.analysis.samples import ANSWER_CHARACTERS, PROMPT_CHARACTERS, collect
from mmtune.analysis.study import Score, Study, cheaper, study
from mmtune.analysis.variants import TrainedRun, Variant

SAMPLES_PER_TASK = 500
_NARROW = "(max-width: 48rem)"
# the style sheet shows one theme: a browser that prints does not choose among a picture's sources again
_FORMS = {"light": {_NARROW: LIGHT_NARROW, "": LIGHT}, "dark": {_NARROW: DARK_NARROW, "": DARK}}
_UNTOLD = {"out", "ckpt_path"}  # where a run was written says nothing about the run


@dataclass(frozen=True, slots=True)
class Row:
    """A set or an average in the table of scores.

    Attributes:
        name: of the set or average.
        rows: how many samples; None of an average.
        average: whether it is one.
        averaged: whether the set is in the averages.
        scores: per variant.
        unparsed: share of answers without a valid prediction per variant, the mean over seeds; None of an average.
    """

    name: str
    rows: int | None
    average: bool
    averaged: bool
    scores: list[Score]
    unparsed: list[float] | None

    def clear(self, i: int) -> bool:
        """Whether variant i differs from the first by more than two standard errors of the difference, unpaired."""
        first, other = self.scores[0], self.scores[i]
        return abs(other.mean - first.mean) > 2 * (first.stderr**2 + other.stderr**2) ** 0.5


def write_report(
    variants: Sequence[Variant],
    target: Path,
    *,
    title: str,
    baseline: str | None = None,
    samples: int = SAMPLES_PER_TASK,
    plots: Path | None = None,
    tables: Path | None = None,
) -> list[str]:
    """Write the page as one HTML file that needs nothing else.

    Args:
        variants: as `read_variants` gives them; answers are compared with those of the first.
        target: the file to write.
        title: of the page.
        baseline: the variant that the others are cheaper than; the most costly tuned one where None.
        samples: at most so many of each task are on the page.
        plots: a folder for the pictures as SVG and PNG.
        tables: a folder for the tables as CSV and LaTeX.

    Returns:
        What is left out, or does not compare, for people.

    Raises:
        UserError: a file is damaged, there is nothing to compare, or no variant is called as the baseline.
    """
    found = study(variants)
    against = found.baseline(baseline)
    costs = [variant.cost for variant in found.variants if variant.cost is not None]
    chosen = collect(found, samples)
    write_page(
        "report.html",
        target,
        title=title,
        study=found,
        rows=_rows(found),
        unit=flop_unit(max((cost.flops for cost in costs), default=0.0)),
        baseline=against,
        cheaper=[None if against is None else cheaper(variant, against) for variant in found.variants],
        resources=_resources(found),
        figures=_figures(found),
        samples=chosen,
        samples_json=embedded_json(chosen.data),
        cuts=(PROMPT_CHARACTERS, ANSWER_CHARACTERS),
        differences=_settings(found, _config, differing=True),
        versions=_settings(found, _versions),
    )
    if plots is not None:
        write_plots(found, plots)
    if tables is not None:
        write_tables(found, tables, against)
    return found.warnings


def _rows(found: Study) -> list[Row]:
    rows = []
    for modality in dict.fromkeys(found.tasks.values()):
        for task, of in found.tasks.items():
            if of == modality:
                results = [[run.results["tasks"][task] for run in variant.runs] for variant in found.variants]
                unparsed = [sum(one["unparsed"] for one in seeds) / len(seeds) for seeds in results]
                scores = [variant.tasks[task] for variant in found.variants]
                rows.append(Row(task, results[0][0]["n"], False, task in found.averaged, scores, unparsed))
    averages = found.averages
    return rows + [Row(name, None, True, True, [a.averages[name] for a in found.variants], None) for name in averages]


def _figures(found: Study) -> dict[str, tuple[str, dict[str, dict[str, str]]]]:
    """Title and forms of each picture: by theme and media query, the picture as a data URL."""
    drawn = {
        theme: {media: svg_figures(found, look) for media, look in looks.items()} for theme, looks in _FORMS.items()
    }

    def url(svg: bytes) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"

    def forms(name: str) -> dict[str, dict[str, str]]:
        return {theme: {media: url(one[name]) for media, one in by_media.items()} for theme, by_media in drawn.items()}

    return {name: (TITLES[name], forms(name)) for name in drawn["light"][""]}


def _resources(found: Study) -> list[str]:
    """Peak memory and energy of each variant, the largest of its runs, as far as the ledgers have them."""
    lines = []
    for variant in found.variants:
        most: dict[str, float] = {}
        for ledger in (run.ledger for run in variant.runs if run.ledger is not None):
            memory = ledger.get("peak_memory_bytes") or {}
            for name, value, size in (
                ("GiB of memory", memory.get("host"), 2**30),
                ("GiB of device memory", memory.get("device"), 2**30),
                ("kWh", ledger.get("energy_kwh"), 1),
            ):
                if isinstance(value, (int, float)):
                    most[name] = max(most.get(name, 0.0), value / size)
        if most:
            lines.append(f"{variant.name}: {', '.join(f'{value:.3g} {name}' for name, value in most.items())} at most.")
    return lines


def _config(run: TrainedRun) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in _UNTOLD}


def _versions(run: TrainedRun) -> dict[str, Any]:
    """What the run and its evaluation were computed with and on."""
    results, ledger = run.results, run.ledger or {}
    told = {"suite": results.get("suite"), "evaluated": results.get("created"), "model": results.get("model")}
    for what, kinds in (("evaluation", results), ("training", ledger)):
        for kind in ("hardware", "versions"):
            values = kinds.get(kind)
            told |= {f"{what}, {name}": value for name, value in (values if isinstance(values, dict) else {}).items()}
    protocols = dict.fromkeys(task["protocol"] for task in results["tasks"].values())
    return told | {"protocol": ", ".join(protocols)}


def _settings(
    found: Study, read: Callable[[TrainedRun], dict[str, Any]], *, differing: bool = False
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each key with its values by variant; one value alone, without a variant, where all have it.

    Args:
        found: the variants.
        read: what a run says; a run that says nothing is left out.
        differing: only keys whose values are not all the same.
    """
    told = {variant.name: [values for run in variant.runs if (values := read(run))] for variant in found.variants}
    told = {name: runs for name, runs in told.items() if runs}
    rows = []
    for key in dict.fromkeys(key for runs in told.values() for values in runs for key in values):
        values = {name: ", ".join(dict.fromkeys(_said(run.get(key)) for run in runs)) for name, runs in told.items()}
        if len(set(values.values())) > 1:
            rows.append((key, list(values.items())))
        elif not differing:
            rows.append((key, [("", next(iter(values.values())))]))
    return rows


def _said(value: Any) -> str:
    return "—" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
