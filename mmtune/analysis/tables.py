"""Terminal tables of scores, comparisons and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mmtune.analysis.comparison import Against, Comparison, Estimate
from mmtune.analysis.plots import flop_unit
from mmtune.analysis.records import MODALITIES, PairedSample, Sample, TaskChange
from mmtune.analysis.study import Study, cheaper
from mmtune.common.text import ending, one_line, visible


def change_table(changes: Sequence[TaskChange], title: str) -> Table:
    """Return a table of scores before and after training, per task and averaged per modality, in percent."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for heading in ("task", "rows", "before", "after", "change", "unparsed before", "after"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for modality in MODALITIES:
        group = [c for c in changes if c.modality == modality]
        if not group:
            continue
        for c in group:
            table.add_row(
                Text(visible(c.name)),
                str(c.rows),
                f"{c.before:.1%} ± {c.before_stderr:.1%}",
                f"{c.after:.1%} ± {c.after_stderr:.1%}",
                _gain(c.change),
                f"{c.before_unparsed:.0%}",
                f"{c.after_unparsed:.0%}",
            )
        before, after = (sum(getattr(c, side) for c in group) / len(group) for side in ("before", "after"))
        average = (f"{modality}, average", "", f"{before:.1%}", f"{after:.1%}")
        table.add_row(*(Text(cell, style="bold") for cell in average), _gain(after - before), "", "", end_section=True)
    return table


def example_table(
    examples: Sequence[tuple[str, PairedSample]],
    title: str = "The same questions, before and after",
    sides: tuple[str, str] = ("before", "after"),
) -> Table:
    """Return a table of questions with both answers side by side, without markup or control characters."""
    table = Table(title=Text(title, style="table.title"), title_justify="left", show_edge=False)
    for heading in ("task", "id", "question", "right answer", *sides):
        table.add_column(heading, overflow="fold", min_width=32 if heading == "question" else None)
    for task, sample in examples:
        table.add_row(
            Text(visible(task)),
            Text(visible(str(sample.before.id))),
            Text(ending(sample.before.prompt, 80)),
            Text(one_line(sample.before.target, 40)),
            _answer(sample.before),
            _answer(sample.after),
        )
    return table


def evaluations_table(comparison: Comparison) -> Table:
    """Return a table of the compared evaluations, with the cost of evaluation and training."""
    table = Table(title="What is compared", title_justify="left", show_edge=False)
    for heading in ("", "evaluation", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("evaluated in", "trained in", "training"):
        table.add_column(heading, justify="right")
    for side in comparison.sides:
        seconds, training = side.seconds(comparison.tasks), side.training()
        table.add_row(
            Text(side.label, style="bold"),
            Text(visible(str(side.folder))),
            Text(visible(side.model)),
            "" if seconds is None else f"{seconds:,.0f} s",
            *("", "")
            if training is None
            else (f"{training['train_s']:,.0f} s", f"{training['flops'] / 1e12:,.1f} TFLOP"),
        )
    return table


def comparison_table(comparison: Comparison, against: Against) -> Table:
    """Return a table with scores in percent, difference and interval in points, and flips, per task and average."""
    first, second = comparison.baseline.label, against.other.label
    table = Table(
        title=f"{second} against {first}: per cent, and points of difference", title_justify="left", show_edge=False
    )
    for heading in ("task", "rows", first, second, "difference", "95 % interval", "wrong → right", "→ wrong", "p"):
        table.add_column(heading, justify="left" if heading == "task" else "right", overflow="fold")

    def figures(estimate: Estimate) -> list[Text]:
        low, high = estimate.interval
        style = ("green" if estimate.difference > 0 else "red") if estimate.clear else ""
        return [
            Text(f"{100 * estimate.baseline:.1f}"),
            Text(f"{100 * estimate.other:.1f}"),
            Text(points_text(estimate.difference), style=style),
            Text(f"{points_text(low)} … {points_text(high)}", style=style),
        ]

    for modality in dict.fromkeys(task.modality for task in against.tasks):
        for task in against.tasks:
            if task.modality == modality:
                flips = (str(task.gained), str(task.lost), p_text(task.p_value))
                table.add_row(Text(visible(task.name)), f"{task.rows:,}", *figures(task.estimate), *flips)
        table.add_section()
    for average in against.averages:
        table.add_row(Text(f"{average.name}, average", style="bold"), "", *figures(average.estimate), "", "", "")
    return table


def study_table(study: Study, baseline: str | None = None) -> Table:
    """Return a table of average scores and training cost, one row per variant, with the cost ratio to the baseline.

    Args:
        study: the variants.
        baseline: name of a variant; None for the tuned variant with the most training operations, if there are at least
            two.

    Raises:
        UserError: no variant has this name.
    """
    table = Table(title="Score beside cost, per cent ± one standard error", title_justify="left", show_edge=False)
    table.pad_edge, table.collapse_padding = False, True  # it has many columns
    table.add_column("variant", overflow="fold", min_width=13)
    size, unit = flop_unit(max((variant.cost.flops for variant in study.variants if variant.cost), default=0.0))
    for heading in (*study.averages, "rows", "text tokens", "image tokens", "passes", unit, "seconds", "cheaper"):
        table.add_column(heading, justify="right")
    reference = study.baseline(baseline)
    for variant in study.variants:
        scores = [f"{100 * score.mean:.1f} ± {100 * score.stderr:.1f}" for score in variant.averages.values()]
        costs: list[str] = []
        if variant.tuned and variant.cost is not None:
            tokens = variant.cost.tokens
            counts = (variant.cost.samples, tokens.get("text", 0), tokens.get("image", 0), variant.cost.tower_passes)
            costs = [
                *(f"{count:,.0f}" for count in counts),
                f"{variant.cost.flops / size:,.1f}",
                f"{variant.cost.seconds:,.0f}",
            ]
            times = None if reference is None else cheaper(variant, reference).at_equal_samples
            costs.append("" if times is None else f"{times:.2f} ×")
        table.add_row(Text(visible(variant.name)), *scores, *costs)
    if reference is not None:
        table.caption = Text(f"cheaper: operations per row of {visible(reference.name)} over the variant's own")
    return table


def flips_table(comparison: Comparison, against: Against, count: int) -> Table:
    """Return a table of the first `count` flipped samples of each task."""
    labels = (comparison.baseline.label, against.other.label)
    shown = [(task.name, flip) for task in against.tasks for flip in task.flips[:count]]
    total = sum(len(task.flips) for task in against.tasks)
    return example_table(shown, f"Flipped from {labels[0]} to {labels[1]}: {len(shown):,} of {total:,} samples", labels)


def points_text(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def p_text(value: float) -> str:
    """Format a p value with three decimals; smaller ones as `<0.001`."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def cost_lines(ledger: dict[str, Any]) -> list[str]:
    """Return lines that summarize a ledger: rows, time, tokens, operations, parameters, memory."""
    tokens, flops = ledger["tokens"], ledger["flops"]
    speed = ""
    if "tokens_per_s" in ledger:  # not a required field, so another tool's ledger may lack it
        rate, used = sum(ledger["tokens_per_s"].values()), ledger["model_flop_utilisation"]
        speed = f": {rate:,.0f} tokens a second, at {used:.0%} of the machine's matrix-product peak"
    return [
        f"{ledger['samples']:,} rows in {ledger['steps']:,} steps, {ledger['train_s']:.0f} s of training{speed}",
        f"{tokens['text']:,} text tokens ({tokens['supervised']:,} learnt), {tokens['image']:,} image tokens, "
        f"{tokens['pad']:,} padding",
        f"{sum(flops.values()) / 1e12:.1f} TFLOP; {ledger['tower_passes']:,} photos through the vision tower",
        f"{ledger['params']['trainable'] / 1e6:.1f} M of {ledger['params']['total'] / 1e6:.1f} M parameters trained, "
        f"{ledger['peak_memory_bytes']['host'] / 2**30:.1f} GiB of memory at most",
    ]


def _answer(sample: Sample) -> Text:
    """Format the prediction, with the raw response where it differs."""
    found = "unparsed" if sample.prediction is None else one_line(sample.prediction, 40)
    answer = Text(found, style="green" if sample.score else "red")
    return answer.append(f" ← {one_line(sample.more, 40)}", style="dim") if sample.more else answer


def _gain(change: float) -> Text:
    return Text(f"{change:+.1%}", style="green" if change > 0 else "red" if change < 0 else "")
