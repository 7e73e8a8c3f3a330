"""Report on variants, a self-contained page: scores, cost, answers side by side, losses, settings, versions."""

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
# themes are switched by the style sheet: browsers do not choose anew among the sources of a picture when they print
_FORMS = {"light": {_NARROW: LIGHT_NARROW, "": LIGHT}, "dark": {_NARROW: DARK_NARROW, "": DARK}}
_UNTOLD = {"out", "ckpt_path"}  # output paths, which do not describe the run


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the table of scores: an evaluation set or an average.

    Attributes:
        name: name of the set or average.
        rows: number of samples; None for an average.
        average: whether the row is an average.
        averaged: whether the set is part of the averages; True for an average.
        scores: one score per variant.
        unparsed: share of answers without a valid prediction per variant, averaged over seeds; None for an average.
    """

    name: str
    rows: int | None
    average: bool
    averaged: bool
    scores: list[Score]
    unparsed: list[float] | None

    def clear(self, i: int) -> bool:
        """Return whether score i differs from the first by over two standard errors of the difference, unpaired."""
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
    """Write the report as one self-contained HTML file.

    Args:
        variants: variants from `read_variants`; answers are compared with those of the first.
        target: the file to write.
        title: title of the page.
        baseline: name of the variant whose cost the others' is compared with; None for the tuned variant with the most
            training operations, if there are at least two.
        samples: maximum number of samples of each task on the page.
        plots: folder for the plots as SVG and PNG; None to write none.
        tables: folder for the tables as CSV and LaTeX; None to write none.

    Returns:
        Warnings for the user about what is left out or not comparable.

    Raises:
        UserError: a file is missing or damaged, there is nothing to report, or no variant has the baseline's name.
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
    """Return the title of each plot, and the plot as a data URL by theme and media query."""
    drawn = {
        theme: {media: svg_figures(found, look) for media, look in looks.items()} for theme, looks in _FORMS.items()
    }

    def url(svg: bytes) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"

    def forms(name: str) -> dict[str, dict[str, str]]:
        return {theme: {media: url(one[name]) for media, one in by_media.items()} for theme, by_media in drawn.items()}

    return {name: (TITLES[name], forms(name)) for name in drawn["light"][""]}


def _resources(found: Study) -> list[str]:
    """Describe peak memory and energy of each variant, the maximum over its runs, as far as the ledgers have them."""
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
    """Return suite, date, model and protocols of an evaluation, and hardware and versions of it and of the training."""
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
    """Return each key with its values by variant; a single value under the name "" where all variants agree.

    Args:
        found: the variants.
        read: returns the values of a run by key; runs without values are left out.
        differing: whether to return only keys on which variants differ.
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
