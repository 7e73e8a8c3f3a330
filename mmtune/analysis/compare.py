"""Comparison of evaluations with a baseline, sample by sample on the same tasks."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtune.analysis.bootstrap import Floats, interval, resampled_means
from mmtune.analysis.comparison import (
    CONFIDENCE,
    REPLICATES,
    Against,
    AverageComparison,
    Comparison,
    Estimate,
    Side,
    TaskComparison,
)
from mmtune.analysis.records import (
    MODALITIES,
    Answers,
    PairedSample,
    difference,
    pair,
    read_answers,
    read_results,
)
from mmtune.common.errors import UserError, did_you_mean

_SAME_SCORE = 1e-6


def compare(folders: Sequence[str | Path], *, tasks: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Compare evaluations with the first of them.

    The difference in a task is that of the mean scores of its samples. Its confidence interval comes from the paired
    bootstrap: samples are drawn with replacement, each with both models' scores, so that the difficulty that a question
    has for both models cancels out (Koehn 2004, Statistical significance tests for machine translation evaluation;
    percentile intervals as in Efron & Tibshirani 1993, section 13.3). For an average, the tasks are strata: within a
    replicate, the samples of each are drawn independently, and the tasks' means are averaged (Davison & Hinkley 1997,
    Bootstrap Methods and their Application, section 3.2).

    Args:
        folders: 2 to 26 folders that hold results.json, or exactly one folder with it below them; the first is the
            baseline.
        tasks: names of the tasks to compare, as far as all evaluations have them; None for all that they have in
            common.
        seed: seed of the bootstrap.

    Raises:
        UserError: there are too few or too many folders; a file is missing or damaged; a task is unknown; or the
            evaluations have no task in common or are not comparable.
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
    """Return the folder of an evaluation: the path itself if it holds results.json, or the one below it that does.

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


def _choose_tasks(sides: Sequence[Side], wanted: Sequence[str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """Return the tasks to compare, and each task that some evaluations lack with the labels of those that have it."""
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
    """Read a task's samples, and check that their number and, for accuracy, their mean score agree with results.json.

    Raises:
        UserError: the file is missing or damaged, or it does not agree with results.json.
    """
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
    """Return the comparison of a task, and the difference in each bootstrap replicate."""
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
    """Compare the averages over language, vision and all tasks, as far as there are such tasks."""
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
