"""Scores and training costs of variants, averaged over seeds, and ratios of costs between variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.analysis.records import MODALITIES, difference
from mmtune.analysis.variants import TrainedRun, Variant
from mmtune.common.errors import UserError
from mmtune.common.files import locate

AVERAGES = (*MODALITIES, "overall")


@dataclass(frozen=True, slots=True)
class Score:
    """Score from 0 to 1, averaged over seeds, with its standard error."""

    mean: float
    stderr: float
    seeds: int = 1

    @classmethod
    def of_seeds(cls, scores: Sequence[float], stderrs: Sequence[float]) -> Score:
        """Average the scores of several seeds.

        The standard error is sqrt(s²/n + mean(e²)), where s is the standard deviation of the n seeds' scores (n − 1 in
        the denominator) and e the sampling standard error of each seed. The first part shrinks with more seeds. The
        second does not: all seeds answer the same sampled questions, so that the difficulty of this sample is common to
        them. The error of a single run is e alone. The spread between seeds already holds a part of the sampling error
        (which questions a seed gets right), so the sum is too large, by at most that part divided by n.
        """
        mean = sum(scores) / len(scores)
        if len(scores) == 1:
            return cls(mean, stderrs[0])
        between = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
        within = sum(error**2 for error in stderrs) / len(stderrs)
        return cls(mean, math.sqrt(between / len(scores) + within), len(scores))


@dataclass(frozen=True, slots=True)
class Cost:
    """Training cost of a variant, averaged over its runs.

    Attributes:
        samples: number of training rows.
        seconds: training time.
        flops: floating-point operations in all.
        flops_by_part: floating-point operations of language model, projector and tower.
        tokens: numbers of text, image, pad and supervised tokens; supervised tokens are text tokens, too.
        tower_passes: number of images encoded by the vision tower.
    """

    samples: float
    seconds: float
    flops: float
    flops_by_part: Mapping[str, float]
    tokens: Mapping[str, float]
    tower_passes: float

    @classmethod
    def of(cls, variant: Variant) -> Cost | None:
        """Average the ledgers of a variant's runs; None where a run has no ledger."""
        ledgers = [run.ledger for run in variant.runs if run.ledger is not None]
        if not ledgers or len(ledgers) < len(variant.runs):
            return None

        def mean(values: Sequence[float]) -> float:
            return values[0] if len(values) == 1 else sum(values) / len(values)

        def means(kind: str) -> dict[str, float]:
            return {name: mean([ledger[kind].get(name, 0) for ledger in ledgers]) for name in ledgers[0][kind]}

        return cls(
            samples=mean([ledger["samples"] for ledger in ledgers]),
            seconds=mean([ledger["train_s"] for ledger in ledgers]),
            flops=mean([sum(ledger["flops"].values()) for ledger in ledgers]),
            flops_by_part=means("flops"),
            tokens=means("tokens"),
            tower_passes=mean([ledger["tower_passes"] for ledger in ledgers]),
        )


@dataclass(frozen=True)
class ScoredVariant:
    """Variant with its scores and its cost.

    Attributes:
        variant: the variant.
        tasks: score of each task of the study.
        averages: average scores over language, vision and all tasks, as far as there are such tasks.
        cost: training cost; None where it is not known. The cost of a variant that others are tuned from is not part of
            theirs.
        start: whether other variants are tuned from its model, or it is only aligned; its cost is then no tuning cost.
    """

    variant: Variant
    tasks: dict[str, Score]
    averages: dict[str, Score]
    cost: Cost | None
    start: bool = False

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.variant.name

    @property
    def runs(self) -> list[TrainedRun]:
        """Finished runs of the variant."""
        return self.variant.runs

    @property
    def tuned(self) -> bool:
        """Whether the variant was tuned, at a known cost."""
        return self.cost is not None and not self.start


@dataclass(frozen=True)
class Study:
    """Variants scored on the same tasks.

    Attributes:
        variants: variants with a finished run.
        tasks: modality of each task that all runs were scored on, by name.
        averaged: names of the tasks in the averages: unseen by all variants, and with comparable scores.
        warnings: messages for the user about what is left out or not comparable.
    """

    variants: list[ScoredVariant]
    tasks: dict[str, str]
    averaged: list[str]
    warnings: list[str]

    @property
    def averages(self) -> list[str]:
        """Names of the averages that have tasks: language, vision, overall."""
        return [name for name in AVERAGES if any(name in ("overall", self.tasks[task]) for task in self.averaged)]

    def baseline(self, name: str | None = None) -> ScoredVariant | None:
        """Return the variant of this name, or the tuned variant with the most training operations if `name` is None.

        Without a name, None where fewer than two variants are tuned.

        Raises:
            UserError: no variant has this name.
        """
        if name is not None:
            for variant in self.variants:
                if variant.name == name:
                    return variant
            raise UserError(
                f"--baseline {name}: no such variant; choose one of: {', '.join(a.name for a in self.variants)}"
            )
        tuned = [variant for variant in self.variants if variant.tuned]
        return max(tuned, key=lambda variant: variant.cost.flops if variant.cost else 0.0) if len(tuned) > 1 else None


@dataclass(frozen=True, slots=True)
class Cheaper:
    """Ratios of a baseline's training operations to those of a variant.

    Attributes:
        at_equal_samples: ratio for equally many training rows; None where one of the two is not tuned or its cost is
            not known.
        at_same_score: ratio for reaching the baseline's score, by average. It is a lower bound, because the variant may
            have reached the score before its end. None where the variant ends below the baseline, or where one of the
            two is not tuned or its cost is not known.
    """

    at_equal_samples: float | None
    at_same_score: Mapping[str, float | None]


def study(variants: Sequence[Variant]) -> Study:
    """Score variants on the tasks that all their runs have.

    Averages are unweighted means over the tasks that no variant has seen and whose scores are comparable in all runs
    (same rows, task version, protocol, metric, way of answering). Their sampling error is that of k independent tasks,
    sqrt(Σe²)/k. The spread between seeds is that of the averages themselves, since a seed may shift several tasks
    together.

    Raises:
        UserError: no run is finished, or the variants have no task in common.
    """
    finished = [variant for variant in variants if variant.runs]
    runs = [run for variant in finished for run in variant.runs]
    if not runs:
        raise UserError("none of the runs is finished, so there is nothing to report")
    tasks = {
        name: str(task["modality"])
        for name, task in runs[0].results["tasks"].items()
        if all(name in run.results["tasks"] for run in runs)
    }
    if not tasks:
        folders = ", ".join(str(run.evaluation) for run in runs)
        raise UserError(f"{folders}: have no task in common, so there is nothing to report; give them one by one")
    unlike = {name: why for name in tasks if (why := _unlike(name, runs))}
    seen = {task: why for variant in variants for task, why in variant.seen.items() if task in tasks}
    averaged = [name for name in tasks if name not in unlike and name not in seen]
    left_out = dict.fromkeys(name for run in runs for name in run.results["tasks"] if name not in tasks)
    warnings = [
        *(
            f"{variant.name}: {folder} is not finished and left out."
            for variant in variants
            for folder in variant.unfinished
        ),
        *(f"{name}: left out, because not every run was scored on it." for name in left_out),
        *(f"{name} does not compare, and is in no average: {why}." for name, why in unlike.items()),
        *(f"{name} is not unseen, and in no average: {why}." for name, why in seen.items()),
    ]
    bases = {place for run in runs if (base := run.config.get("model.base")) for place in _places(str(base))}
    scored = [_scored(variant, tasks, averaged, bases) for variant in finished]
    return Study(scored, tasks, averaged, warnings + _different_samples(scored))


def cheaper(variant: ScoredVariant, baseline: ScoredVariant) -> Cheaper:
    """Compute how many times fewer floating-point operations the variant's training took than the baseline's."""
    if not (variant.cost and baseline.cost and variant.tuned and baseline.tuned and variant.cost.flops):
        return Cheaper(None, dict.fromkeys(variant.averages))
    times = baseline.cost.flops / variant.cost.flops
    rows = variant.cost.samples and baseline.cost.samples
    return Cheaper(
        times * variant.cost.samples / baseline.cost.samples if rows else None,
        {
            name: times if score.mean >= baseline.averages[name].mean else None
            for name, score in variant.averages.items()
        },
    )


def _scored(variant: Variant, tasks: Mapping[str, str], averaged: Sequence[str], bases: set[Path]) -> ScoredVariant:
    results = [run.results["tasks"] for run in variant.runs]
    scores = {
        name: Score.of_seeds([one[name]["score"] for one in results], [one[name]["stderr"] for one in results])
        for name in tasks
    }
    averages = {}
    for average in AVERAGES:
        group = [name for name in averaged if average in ("overall", tasks[name])]
        if group:
            averages[average] = Score.of_seeds(
                [sum(one[name]["score"] for name in group) / len(group) for one in results],
                [math.sqrt(sum(one[name]["stderr"] ** 2 for name in group)) / len(group) for one in results],
            )
    start = any(run.aligned_only or (run.run is not None and bases & _places(str(run.run))) for run in variant.runs)
    return ScoredVariant(variant, scores, averages, Cost.of(variant), start)


def _places(model: str) -> set[Path]:
    """Return the run directory of a reference to a run or to its model; empty where there is none, as for a hub id."""
    try:
        place = locate(model)
    except UserError:
        return set()
    place = place.parent if place.name == "model" else place
    return {place.resolve()} if place.is_dir() else set()


def _unlike(name: str, runs: Sequence[TrainedRun]) -> str | None:
    """Return why a task's scores are not comparable, or None if they are."""
    first = runs[0]
    for run in runs[1:]:
        if found := difference(first.results["tasks"][name], run.results["tasks"][name]):
            return f"{first.evaluation} and {run.evaluation} differ in {found[0]}, {found[1]}"
    return None


def _different_samples(variants: Sequence[ScoredVariant]) -> list[str]:
    """Return a warning if tuned runs were trained on different numbers of rows; else an empty list."""
    ledgers = [run.ledger for variant in variants if variant.tuned for run in variant.runs]
    rows = {ledger["samples"] for ledger in ledgers if ledger is not None}
    if len(rows) < 2:
        return []
    listed = f"{min(rows):,} to {max(rows):,}"
    return [f"The runs were trained on differently many rows, {listed}; mind that when comparing their scores."]
