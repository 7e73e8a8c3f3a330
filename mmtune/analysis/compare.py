"""Several evaluations of the same tasks, sample by sample against a baseline."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.analysis.bootstrap import Floats, interval, resampled_means, sign_test
from mmtune.analysis.records import (
    MODALITIES,
    Answers,
    PairedSample,
    difference,
    is_number,
    pair,
    read_answers,
    read_results,
)
from mmtune.analysis.runs import read_ledger, run_of
from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.files import atomic_path

CONFIDENCE = 0.95
REPLICATES = 10_000
_SAME_SCORE = 1e-6


@dataclass(frozen=True, slots=True)
class Side:
    """One of the evaluations.

    Attributes:
        label: A for the baseline, then B, C …
        folder: with results.json and samples/.
        results: what results.json says.
    """

    label: str
    folder: Path
    results: dict[str, Any]

    @property
    def file(self) -> Path:
        """The file of the scores."""
        return self.folder / "results.json"

    @property
    def model(self) -> str:
        """The model's name: of a run, its folder."""
        return str(self.results.get("model", "unknown"))

    def seconds(self, tasks: Sequence[str]) -> float | None:
        """What scoring these tasks took, or None where it was not written down."""
        seconds = [self.results["tasks"][name].get("seconds") for name in tasks]
        return sum(seconds) if all(map(is_number, seconds)) else None

    def training(self) -> dict[str, float] | None:
        """Seconds and operations of the run that made the model, or None where the model is no run with a ledger."""
        try:
            run = run_of(self.folder, self.model)
            ledger = None if run is None else read_ledger(run)
        except UserError:  # the cost stands beside the scores where it is known; they do not depend on it
            return None
        return ledger and {"train_s": float(ledger["train_s"]), "flops": float(sum(ledger["flops"].values()))}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Two scores from 0 to 1 and the confidence interval of their difference."""

    baseline: float
    other: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """The other's gain over the baseline."""
        return self.other - self.baseline

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task.

    Attributes:
        name: of the task.
        modality: language or vision.
        rows: how many samples.
        estimate: of the mean score of the samples.
        flips: the samples whose score changed, in the order of the rows.
        reported: metric and both scores of results.json, where the task's score is not the samples' mean score.
    """

    name: str
    modality: str
    rows: int
    estimate: Estimate
    flips: list[PairedSample]
    reported: tuple[str, float, float] | None

    @property
    def gained(self) -> int:
        """Samples whose score rose: wrong before, right now, where scores are 0 or 1."""
        return sum(flip.change > 0 for flip in self.flips)

    @property
    def lost(self) -> int:
        """Samples whose score fell."""
        return len(self.flips) - self.gained

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test on the flips."""
        return sign_test(self.gained, self.lost)


@dataclass(frozen=True, slots=True)
class AverageComparison:
    """The unweighted mean over some of the tasks compared."""

    name: str
    tasks: list[str]
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Against:
    """One evaluation against the baseline."""

    other: Side
    tasks: list[TaskComparison]
    averages: list[AverageComparison]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All evaluations against the first of them.

    Attributes:
        baseline: the first.
        against: the others, each against it.
        tasks: what was compared: the tasks that all have, in the baseline's order.
        left_out: the tasks that not all have, with the labels of those that do.
        seed: of the bootstrap.
    """

    baseline: Side
    against: list[Against]
    tasks: list[str]
    left_out: dict[str, list[str]]
    seed: int

    @property
    def sides(self) -> list[Side]:
        """Baseline and others."""
        return [self.baseline, *(one.other for one in self.against)]

    def method(self) -> list[str]:
        """How the figures came about, in a few sentences."""
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
        """The content of `comparison.json`."""
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


def compare(folders: Sequence[str | Path], *, tasks: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Compare evaluations with the first of them.

    The difference of a task is that of the mean scores of its samples. Its confidence interval comes from the paired
    bootstrap: samples are drawn with replacement, each with both models' scores, so that what makes a question hard for
    both cancels out (Koehn 2004, Statistical significance tests for machine translation evaluation; percentile
    intervals as in Efron & Tibshirani 1993, section 13.3). For an average, each task's samples are drawn independently
    within a replicate, as its strata, and the replicates' means averaged (Davison & Hinkley 1997, Bootstrap Methods and
    their Application, section 3.2).

    Args:
        folders: at least two folders with results.json, or above exactly one; the first is the baseline.
        tasks: only these; all that the evaluations have in common where None.
        seed: of the bootstrap.

    Raises:
        UserError: a file is missing or damaged, or the evaluations do not compare.
    """
    if len(folders) < 2:
        raise UserError("give two or more evaluations to compare; the first is the baseline")
    if len(folders) > len(string.ascii_uppercase):
        raise UserError(f"at most {len(string.ascii_uppercase)} evaluations can be compared at once")
    sides = []
    for label, folder in zip(string.ascii_uppercase, folders, strict=False):
        found = find_evaluation(Path(folder))
        sides.append(Side(label, found, read_results(found)))
    common, left_out = _choose_tasks(sides, tasks)
    baseline, others = sides[0], sides[1:]
    for name, other in itertools.product(common, others):
        _check_comparable(name, baseline, other)
    compared: dict[str, list[tuple[TaskComparison, Floats]]] = {side.label: [] for side in others}
    for name in common:  # one task at a time: only its samples are in memory
        answers = _answers(baseline, name)
        for other in others:
            pairs = pair(answers, _answers(other, name))
            compared[other.label].append(_compare_task(name, baseline, other, pairs, seed))
    against = [
        Against(other, [task for task, _ in compared[other.label]], _averages(compared[other.label]))
        for other in others
    ]
    return Comparison(baseline, against, common, left_out, seed)


def find_evaluation(path: Path) -> Path:
    """The folder itself if it holds results.json, or the one below it that does.

    Raises:
        UserError: there is none, or more than one.
    """
    if path.name == "results.json":
        path = path.parent
    if (path / "results.json").is_file():
        return path
    found = sorted(file.parent for file in path.rglob("results.json"))
    if not found:
        what = "holds no results.json" if path.is_dir() else "no such folder"
        raise UserError(f"{path}: {what}; mmtune eval --out DIR writes one")
    if len(found) > 1:
        raise UserError(f"{path}: holds several evaluations; give one of {', '.join(map(str, found))}")
    return found[0]


def write_json_file(comparison: Comparison, target: Path) -> None:
    """Write `comparison.json`, whole or not at all."""
    # in ASCII, nothing that a model said acts on a terminal that shows the file, and lone surrogates can be written
    text = json.dumps(comparison.as_dict(), indent=2) + "\n"
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="ascii")


def _choose_tasks(sides: Sequence[Side], wanted: Sequence[str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """The tasks to compare, and those that not all have with the labels of those that do."""
    having: dict[str, list[str]] = {}
    for side in sides:
        for name in side.results["tasks"]:
            having.setdefault(name, []).append(side.label)
    if wanted is not None:
        if not wanted:
            raise UserError("--tasks: names no task")
        for name in wanted:
            if name not in having:
                raise UserError(f"--tasks: no evaluation has {name!r}; {did_you_mean(name, having)}")
        having = {name: labels for name, labels in having.items() if name in wanted}
    common = [name for name, labels in having.items() if len(labels) == len(sides)]
    if not common:
        files = ", ".join(str(side.file) for side in sides)
        raise UserError(f"{files}: have no task in common, so there is nothing to compare")
    return common, {name: labels for name, labels in having.items() if len(labels) < len(sides)}


def _check_comparable(name: str, baseline: Side, other: Side) -> None:
    found = difference(baseline.results["tasks"][name], other.results["tasks"][name])
    if found:
        raise UserError(
            f"{baseline.file} and {other.file} differ in {found[0]} of task {name!r}: {found[1]}, so the scores do not "
            "compare; evaluate one of them again, or leave the task out with --tasks"
        )


def _answers(side: Side, name: str) -> Answers:
    """A task's samples, if they are those that its result was made of."""
    answers, task = read_answers(side.folder, name), side.results["tasks"][name]
    scores = [sample.score for sample in answers.samples.values()]
    if not scores or len(scores) != task["n"]:
        raise UserError(f"{answers.file}: has {len(scores)} samples, {side.file} says {task['n']}; evaluate it again")
    if task["metric"] == "accuracy" and abs(np.mean(scores) - task["score"]) > _SAME_SCORE:
        raise UserError(
            f"{answers.file}: the samples' mean score is {np.mean(scores):.4f}, {side.file} says {task['score']:.4f}; "
            "evaluate it again"
        )
    return answers


def _compare_task(
    name: str, baseline: Side, other: Side, pairs: Sequence[PairedSample], seed: int
) -> tuple[TaskComparison, Floats]:
    """The comparison, and the difference in each bootstrap replicate."""
    old, new = (np.array([getattr(p, side).score for p in pairs], dtype=np.float64) for side in ("before", "after"))
    replicates = resampled_means(new - old, replicates=REPLICATES, seed=seed, stream=name)
    estimate = Estimate(float(old.mean()), float(new.mean()), interval(replicates, CONFIDENCE))
    task, task_other = (side.results["tasks"][name] for side in (baseline, other))
    moved = max(abs(task["score"] - estimate.baseline), abs(task_other["score"] - estimate.other)) > _SAME_SCORE
    comparison = TaskComparison(
        name,
        task["modality"],
        len(pairs),
        estimate,
        flips=[one for one in pairs if one.change],
        reported=(task["metric"], task["score"], task_other["score"]) if moved else None,
    )
    return comparison, replicates


def _averages(compared: Sequence[tuple[TaskComparison, Floats]]) -> list[AverageComparison]:
    """Language, vision and overall, as far as there are such tasks."""
    averages = []
    for name in (*MODALITIES, "overall"):
        group = [(task, drawn) for task, drawn in compared if name in ("overall", task.modality)]
        if group:
            baseline, other = (
                sum(getattr(task.estimate, side) for task, _ in group) / len(group) for side in ("baseline", "other")
            )
            drawn = np.mean([drawn for _, drawn in group], axis=0)
            estimate = Estimate(baseline, other, interval(drawn, CONFIDENCE))
            averages.append(AverageComparison(name, [task.name for task, _ in group], estimate))
    return averages


def _listed(labels: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


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
