"""Before, after and cost as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mmtune.analysis.records import PairedSample, TaskChange


def change_table(changes: Sequence[TaskChange], title: str) -> Table:
    """Score before and after for each task and the average of each modality, in per cent."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for heading in ("task", "rows", "before", "after", "change", "unparsed before", "after"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for modality in ("language", "vision"):
        group = [c for c in changes if c.modality == modality]
        if not group:
            continue
        for c in group:
            table.add_row(
                c.name,
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


def example_table(examples: Sequence[tuple[str, PairedSample]]) -> Table:
    """Questions with the answers before and after side by side; answers are shown as plain text."""
    table = Table(title="The same questions, before and after", title_justify="left", show_edge=False)
    for heading in ("task", "question", "right answer", "before", "after"):
        table.add_column(heading, overflow="fold")
    for task, sample in examples:
        table.add_row(
            task,
            Text(last_line(sample.prompt, 60)),
            Text(sample.target),
            Text(one_line(sample.before, 40), style="green" if sample.before_score else "red"),
            Text(one_line(sample.after, 40), style="green" if sample.after_score else "red"),
        )
    return table


def cost_lines(ledger: dict[str, Any]) -> list[str]:
    """A ledger in a few sentences."""
    tokens, flops = ledger["tokens"], ledger["flops"]
    return [
        f"{ledger['samples']:,} rows in {ledger['steps']:,} steps, {ledger['train_s']:.0f} s of training",
        f"{tokens['text']:,} text tokens ({tokens['supervised']:,} learnt), {tokens['image']:,} image tokens, "
        f"{tokens['pad']:,} padding",
        f"{sum(flops.values()) / 1e12:.1f} TFLOP; {ledger['tower_passes']:,} photos through the vision tower",
        f"{ledger['params']['trainable'] / 1e6:.1f} M of {ledger['params']['total'] / 1e6:.1f} M parameters trained, "
        f"{ledger['peak_memory_bytes']['host'] / 2**30:.1f} GiB of memory at most",
    ]


def one_line(text: str, width: int) -> str:
    """The text without line breaks and control characters, cut to a width."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def last_line(text: str, width: int) -> str:
    """The last line that says something, cut to a width: where a prompt's question usually stands."""
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1] if lines else "", width)


def _gain(change: float) -> Text:
    return Text(f"{change:+.1%}", style="green" if change > 0 else "red" if change < 0 else "")
