"""A self-contained page about one tuning: scores before and after, answers side by side, cost, loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.analysis.pages import write_page
from mmtune.analysis.records import MODALITIES, paired_samples, read_metrics, read_results, task_changes
from mmtune.analysis.tables import cost_lines
from mmtune.files import read_json

SAMPLES_PER_TASK = 12


def write_report(run: Path, before: Path, after: Path, target: Path, *, title: str) -> None:
    """Write the page as one HTML file that needs nothing else.

    Args:
        run: the run directory.
        before: the evaluation of the model the run began with.
        after: the evaluation of the model it made.
        target: the file to write.
        title: of the page.

    Raises:
        UserError: a file of these is missing, or the evaluations do not compare.
    """
    old, new = read_results(before), read_results(after)
    changes = task_changes(old, new)
    losses = [(row["step"], row["train_loss"]) for row in read_metrics(run) if "train_loss" in row]
    ledger = read_json(run / "ledger.json")
    write_page(
        "report.html",
        target,
        title=title,
        changes=changes,
        groups=[(m, [c for c in changes if c.modality == m]) for m in MODALITIES],
        samples=[(c, paired_samples(before, after, c.name)[:SAMPLES_PER_TASK]) for c in changes],
        cost=cost_lines(ledger),
        ledger=ledger,
        old=old,
        new=new,
        curve=_curve(losses),
    )


def _curve(points: Sequence[tuple[float, float]], width: int = 640, height: int = 200) -> dict[str, Any] | None:
    """A smoothed line as SVG coordinates, with the values at its ends."""
    if len(points) < 2:
        return None
    smooth: list[float] = []
    for _, loss in points:
        smooth.append(loss if not smooth else 0.9 * smooth[-1] + 0.1 * loss)
    low, high = min(smooth), max(smooth)
    last = points[-1][0] or 1
    path = " ".join(
        f"{step / last * width:.1f},{height - (value - low) / ((high - low) or 1) * height:.1f}"
        for (step, _), value in zip(points, smooth, strict=True)
    )
    return {"path": path, "low": low, "high": high, "steps": int(last) + 1, "width": width, "height": height}
