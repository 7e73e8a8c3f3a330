"""Results of a comparison of evaluations, as objects and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.analysis.bootstrap import sign_test
from mmtune.analysis.records import (
    PairedSample,
)
from mmtune.analysis.runs import read_ledger, run_of
from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path
from mmtune.common.schema import Number, fits

CONFIDENCE = 0.95
REPLICATES = 10_000


@dataclass(frozen=True, slots=True)
class Side:
    """One evaluation of a comparison.

    Attributes:
        label: A for the baseline, then B, C …
        folder: the folder with results.json and samples/.
        results: content of results.json.
    """

    label: str
    folder: Path
    results: dict[str, Any]

    @property
    def file(self) -> Path:
        """Path of results.json."""
        return self.folder / "results.json"

    @property
    def model(self) -> str:
        """Reference to the model as recorded in results.json, for a run its folder; `unknown` where it is missing."""
        return str(self.results.get("model", "unknown"))

    def seconds(self, tasks: Sequence[str]) -> float | None:
        """Return the seconds that evaluating these tasks took, or None where a task has no record of it."""
        seconds = [self.results["tasks"][name].get("seconds") for name in tasks]
        return sum(seconds) if all(fits(Number, value) for value in seconds) else None

    def training(self) -> dict[str, float] | None:
        """Return seconds (`train_s`) and floating-point operations (`flops`) of the run that trained the model.

        None where there is no such run, or where its ledger is missing or damaged.
        """
        try:
            run = run_of(self.folder, self.model)
            ledger = None if run is None else read_ledger(run)
        except UserError:  # the scores can be shown without the cost
            return None
        return ledger and {"train_s": float(ledger["train_s"]), "flops": float(sum(ledger["flops"].values()))}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Scores of the baseline and of the other model, from 0 to 1, and the confidence interval of their difference."""

    baseline: float
    other: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """Score of the other model minus that of the baseline."""
        return self.other - self.baseline

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """Comparison of two models on one task.

    Attributes:
        name: name of the task.
        modality: language or vision.
        rows: number of samples.
        estimate: mean scores of the samples, and the interval of their difference.
        flips: samples whose score changed, in the order of the rows.
        reported: metric and both scores in results.json, where a score there is not the mean score of the samples; else
            None.
    """

    name: str
    modality: str
    rows: int
    estimate: Estimate
    flips: list[PairedSample]
    reported: tuple[str, float, float] | None

    @property
    def gained(self) -> int:
        """Number of samples whose score rose; where scores are 0 or 1, from wrong to right."""
        return sum(flip.change > 0 for flip in self.flips)

    @property
    def lost(self) -> int:
        """Number of samples whose score fell."""
        return len(self.flips) - self.gained

    @property
    def p_value(self) -> float:
        """P value of the exact McNemar test on the flips."""
        return sign_test(self.gained, self.lost)


@dataclass(frozen=True, slots=True)
class AverageComparison:
    """Comparison of two models by the unweighted mean score over some of the compared tasks."""

    name: str
    tasks: list[str]
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Against:
    """Comparison of one evaluation with the baseline: its tasks and their averages."""

    other: Side
    tasks: list[TaskComparison]
    averages: list[AverageComparison]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of several evaluations with the first of them.

    Attributes:
        baseline: the first evaluation.
        against: the comparison of each other evaluation with the baseline.
        tasks: the compared tasks, which all evaluations have, in the baseline's order.
        left_out: tasks that some evaluations lack, each with the labels of those that have it.
        seed: seed of the bootstrap.
    """

    baseline: Side
    against: list[Against]
    tasks: list[str]
    left_out: dict[str, list[str]]
    seed: int

    @property
    def sides(self) -> list[Side]:
        """All evaluations, the baseline first."""
        return [self.baseline, *(one.other for one in self.against)]

    def method(self) -> list[str]:
        """Return sentences that describe intervals, tests, averages, and tasks that were left out."""
        count = "the one task" if len(self.tasks) == 1 else f"the {len(self.tasks)} tasks"
        return [
            f"Intervals: {100 * CONFIDENCE:.0f} %, paired percentile bootstrap over the samples, "
            f"{REPLICATES:,} replicates, seed {self.seed}. p: exact McNemar test on the flips, each task alone.",
            f"Averages are unweighted and only over {count} that {_listed([s.label for s in self.sides])} have.",
            *(
                f"Left out: {task}, which only {_listed(who)} {'has' if len(who) == 1 else 'have'}."
                for task, who in self.left_out.items()
            ),
            *(
                f"{task.name} is scored by {task.reported[0]} ({one.other.label}: {task.reported[2]:.1%}, "
                f"{self.baseline.label}: {task.reported[1]:.1%}); compared here is the mean score of its samples."
                for one in self.against
                for task in one.tasks
                if task.reported
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `comparison.json`."""
        return {
            "method": {
                "interval": "paired percentile bootstrap",
                "confidence": CONFIDENCE,
                "replicates": REPLICATES,
                "seed": self.seed,
                "p_value": "exact McNemar",
            },
            "evaluations": [
                {
                    "label": side.label,
                    "folder": str(side.folder),
                    "model": side.model,
                    "suite": str(side.results.get("suite", "unknown")),
                    "seconds": side.seconds(self.tasks),
                    "training": side.training(),
                }
                for side in self.sides
            ],
            "tasks_compared": self.tasks,
            "tasks_left_out": self.left_out,
            "comparisons": [
                {
                    "baseline": self.baseline.label,
                    "other": one.other.label,
                    "tasks": {task.name: _task_values(task) for task in one.tasks},
                    "averages": {a.name: {"tasks": a.tasks, **_estimate_values(a.estimate)} for a in one.averages},
                }
                for one in self.against
            ],
        }


def write_json_file(comparison: Comparison, target: Path) -> None:
    """Write `comparison.json` atomically."""
    # ASCII, so that control characters of a response do not reach a terminal, and lone surrogates can be written
    text = json.dumps(comparison.as_dict(), indent=2) + "\n"
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="ascii")


def _estimate_values(estimate: Estimate) -> dict[str, Any]:
    return {
        "baseline": estimate.baseline,
        "other": estimate.other,
        "difference": estimate.difference,
        "interval": list(estimate.interval),
    }


def _task_values(task: TaskComparison) -> dict[str, Any]:
    def side(sample: Any) -> dict[str, Any]:
        return {"prediction": sample.prediction, "response": sample.response, "score": sample.score}

    reported = task.reported
    return {
        "modality": task.modality,
        "rows": task.rows,
        **_estimate_values(task.estimate),
        "gained": task.gained,
        "lost": task.lost,
        "p_value": task.p_value,
        "reported": None if reported is None else dict(zip(("metric", "baseline", "other"), reported, strict=True)),
        "flips": [
            {
                "id": flip.before.id,
                "prompt": flip.before.prompt,
                "target": flip.before.target,
                "baseline": side(flip.before),
                "other": side(flip.after),
            }
            for flip in task.flips
        ],
    }


def _listed(labels: Sequence[str]) -> str:
    """Join labels: `A`, `A and B`, `A, B and C`."""
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
