"""Plots of a report: as SVG for the page, light or dark and wide or narrow, and as PNG and SVG files for papers."""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.analysis.study import ScoredVariant, Study
from mmtune.common.files import atomic_path
from mmtune.common.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colors (jfly.uni-koeln.de/color), which color-blind readers can distinguish, on white and on black
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_ON_DARK = ("#4ba3e3", "#f0803c", "#2fc195", "#e39ac2", "#f2b632", "#a5d8f5", "#a8a8a8")  # the same, lighter
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# kinds of tokens, each with the index of its color
_TOKENS = {"text, learnt": 0, "text, read": 5, "image": 1, "padding": 6}
_UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
_SMOOTH = 0.9


@dataclass(frozen=True, slots=True)
class Look:
    """Style of a plot.

    Attributes:
        ink: color of text and axes.
        grid: color of the grid lines.
        colours: colors of the variants, reused in turn.
        narrow: whether the plot is for a phone, with its panels below each other.
    """

    ink: str = "#1c2430"
    grid: str = "#dfe4ec"
    colours: tuple[str, ...] = _COLOURS
    narrow: bool = False

    @property
    def width(self) -> float:
        """Width in inches, such that text is as large as the page's when the plot is scaled to the page."""
        return 4.4 if self.narrow else 9.6


LIGHT, DARK = Look(), Look("#e4e9f1", "#3a4454", _ON_DARK)
LIGHT_NARROW, DARK_NARROW = (dataclasses.replace(look, narrow=True) for look in (LIGHT, DARK))
TITLES = {
    "score-against-flops": "Score against training operations",
    "scores": "Scores by set",
    "tokens": "Tokens by kind",
    "loss": "Training loss",
}


def svg_figures(study: Study, look: Look) -> dict[str, bytes]:
    """Return the plots as SVG, by name, without those that have no data."""
    return {name: _saved(figure, "svg") for name, figure in _drawn(study, look).items()}


def write_plots(study: Study, folder: Path) -> list[Path]:
    """Write every plot as `NAME.svg` and `NAME.png` (200 dots per inch), and return their paths."""
    written = []
    for name, figure in _drawn(study, LIGHT).items():
        for kind in ("svg", "png"):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                temporary.write_bytes(_saved(figure, kind))
            written.append(folder / f"{name}.{kind}")
    return written


def flop_unit(largest: float) -> tuple[float, str]:
    """Return the divisor and the name of the unit for floating-point operations up to `largest`."""
    for size, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if largest >= size:
            return size, name
    return 1.0, "FLOP"


def _drawn(study: Study, look: Look) -> dict[str, Figure]:
    import matplotlib as mpl

    drawings: dict[str, Callable[[Study, Look], Figure | None]] = {
        "score-against-flops": _score_against_flops,
        "scores": _scores,
        "tokens": _tokens,
        "loss": _loss,
    }
    with mpl.rc_context(_style(look)):
        figures = {name: draw(study, look) for name, draw in drawings.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _style(look: Look) -> Any:
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(ink, look.ink),
        "font.size": 10,
        "font.family": "DejaVu Sans",  # wider than the fonts that browsers substitute, so that no text is cut
        "text.parse_math": False,  # a dollar in a name is a dollar
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "grid.color": look.grid,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def _saved(figure: Figure, kind: str) -> bytes:
    import matplotlib as mpl

    stream = io.BytesIO()
    # a fixed salt gives the same bytes for the same study; text stays text, not outlines
    with mpl.rc_context({"svg.hashsalt": "mmtune", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the PNG shows a box there
        paper = {"facecolor": "white", "dpi": 200} if kind == "png" else {"transparent": True}
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None, **paper)
    return stream.getvalue()


def _figure(look: Look, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(look.width, height))


def _names(study: Study) -> dict[str, str]:
    return {variant.name: one_line(variant.name, 36) or "(no name)" for variant in study.variants}


def _looks(study: Study, look: Look) -> dict[str, dict[str, str]]:
    """Return color and marker of each variant, the same in all plots."""
    return {
        variant.name: {"color": look.colours[i % len(look.colours)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, variant in enumerate(study.variants)
    }


def _legend(figure: Figure, handles: Mapping[str, Any], look: Look) -> None:
    """Draw one legend above all panels."""
    widest = max(map(len, handles))
    columns = max(1, min(len(handles), int(look.width * 11) // (widest + 6)))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns)


def _legend_height(names: Sequence[str], look: Look) -> float:
    columns = max(1, min(len(names), int(look.width * 11) // (max(map(len, names)) + 6)))
    return 0.22 * -(-len(names) // columns) + 0.2


def _score_against_flops(study: Study, look: Look) -> Figure | None:
    tuned = [variant for variant in study.variants if variant.tuned and variant.cost and variant.cost.flops > 0]
    if not tuned or not study.averages:
        return None
    flops = [variant.cost.flops for variant in tuned if variant.cost]
    size, unit = flop_unit(max(flops))
    names, looks = _names(study), _looks(study, look)
    count = len(study.averages)
    top = _legend_height(list(names.values()), look)
    figure = _figure(look, top + (2.4 * count if look.narrow else 3.2))
    axes = figure.subplots(*((count, 1) if look.narrow else (1, count)), squeeze=False).flat
    handles: dict[str, Any] = {}
    for average, axis in zip(study.averages, axes, strict=True):
        axis.set_title(f"{average}, average")
        for variant in study.variants:
            score = variant.averages[average]
            colour = looks[variant.name]["color"]
            if variant.cost is not None and variant in tuned:
                handle: Any = axis.errorbar(
                    variant.cost.flops / size,
                    100 * score.mean,
                    100 * score.stderr,
                    fmt=looks[variant.name]["marker"],
                    color=colour,
                    markersize=8,
                    capsize=4,
                )
            else:  # base of the others, or a model without a ledger: it has no operations on the x axis
                handle = axis.axhline(100 * score.mean, color=colour, linestyle="--", linewidth=1.4)
                axis.axhspan(
                    100 * (score.mean - score.stderr), 100 * (score.mean + score.stderr), color=colour, alpha=0.12
                )
            handles[names[variant.name]] = handle
        axis.set_xscale("log")
        axis.set_xlim(min(flops) / size / 1.6, max(flops) / size * 1.6)
        _plain_log_axis(axis)
        axis.set_xlabel(f"training, {unit}")
        axis.margins(y=0.15)
    figure.axes[0].set_ylabel("score, %")
    _legend(figure, handles, look)
    return figure


def _plain_log_axis(axis: Axes) -> None:
    """Label a logarithmic x axis with plain numbers, few enough to be readable."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_xlim()
    steps: tuple[float, ...] = (1.0,) if high / low > 1000 else (1.0, 3.0) if high / low > 60 else (1.0, 2.0, 5.0)
    if high / low < 4:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _scores(study: Study, look: Look) -> Figure:
    names, looks = _names(study), _looks(study, look)
    rows = [(one_line(task, 24 if look.narrow else 36), task, False) for task in study.tasks]
    rows += [(f"{average}, average", average, True) for average in study.averages]
    room = 0.14 * len(study.variants) + 0.2
    height = room * len(rows) + _legend_height(list(names.values()), look) + 0.7
    figure = _figure(look, height)
    axis = figure.subplots()
    handles: dict[str, Any] = {}
    for i, variant in enumerate(study.variants):
        shift = (i - (len(study.variants) - 1) / 2) * 0.14 / room
        scores = [(variant.averages if average else variant.tasks)[name] for _, name, average in rows]
        handles[names[variant.name]] = axis.errorbar(
            [100 * score.mean for score in scores],
            [row + shift for row in range(len(rows))],
            xerr=[100 * score.stderr for score in scores],
            fmt=looks[variant.name]["marker"],
            color=looks[variant.name]["color"],
            markersize=5,
            linestyle="",
        )
    axis.set_yticks(range(len(rows)), [shown for shown, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if study.averages:
        axis.axhline(len(study.tasks) - 0.5, color=look.ink, linewidth=0.6)
    axis.set_xlabel("score, %")
    _legend(figure, handles, look)
    return figure


def _tokens(study: Study, look: Look) -> Figure | None:
    known = [variant for variant in study.variants if variant.tuned]
    if not known:
        return None
    names = _names(study)
    figure = _figure(look, 0.36 * len(known) + _legend_height(list(_TOKENS), look) + 0.7)
    axis = figure.subplots()
    counts = [_token_kinds(variant) for variant in known]
    largest = max(sum(count.values()) for count in counts) or 1.0
    size, unit = next((found for found in _UNITS if largest >= found[0]), (1.0, ""))
    handles: dict[str, Any] = {}
    left = [0.0] * len(known)
    for kind, place in _TOKENS.items():
        widths = [count[kind] / size for count in counts]
        handles[kind] = axis.barh(range(len(known)), widths, left=left, color=look.colours[place], height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(known)), [one_line(names[variant.name], 18 if look.narrow else 36) for variant in known])
    axis.set_ylim(len(known) - 0.5, -0.5)
    axis.set_xlabel(f"tokens, {unit}".removesuffix(", "))
    _legend(figure, handles, look)
    return figure


def _token_kinds(variant: ScoredVariant) -> dict[str, float]:
    tokens = variant.cost.tokens if variant.cost else {}
    text, learnt = tokens.get("text", 0), tokens.get("supervised", 0)
    kinds = (learnt, text - learnt, tokens.get("image", 0), tokens.get("pad", 0))
    return dict(zip(_TOKENS, kinds, strict=True))


def _loss(study: Study, look: Look) -> Figure | None:
    names, looks = _names(study), _looks(study, look)
    curves = [
        (variant, run.losses)
        for variant in study.variants
        if not variant.start
        for run in variant.runs
        if len(run.losses) > 1
    ]
    if not curves:
        return None
    shown = list(dict.fromkeys(names[variant.name] for variant, _ in curves))
    figure = _figure(look, 2.8 + _legend_height(shown, look))
    axis = figure.subplots()
    handles: dict[str, Any] = {}
    for variant, points in curves:
        smooth = _smoothed([loss for _, loss in points])
        (handle,) = axis.plot([step for step, _ in points], smooth, color=looks[variant.name]["color"], linewidth=1.6)
        handles[names[variant.name]] = handle
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats a token")
    _legend(figure, handles, look)
    return figure


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, in which each new value has the weight 1 - _SMOOTH."""
    return list(itertools.accumulate(values, lambda old, new: _SMOOTH * old + (1 - _SMOOTH) * new))
