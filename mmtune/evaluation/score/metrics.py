"""Scores of a whole set from the scores of its samples, with a bootstrap standard error.

Written in numpy although torchmetrics has most of it: one call serves the set and a thousand resamples of it at once,
in double precision, on answers as they are (text, or None where unparsed). The tests show the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50  # bounds the memory of large sets


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What happened to the samples of a set.

    Attributes:
        score: [..., n], 0 to 1.
        prediction: [..., n] parsed answers, None where unparsed.
        target: [..., n] gold answers.
    """

    score: Floats
    prediction: npt.NDArray[np.object_]
    target: npt.NDArray[np.object_]

    @classmethod
    def of(cls, scores: Sequence[float], predictions: Sequence[str | None], targets: Sequence[str]) -> Outcomes:
        """From three lists of the same length."""
        return cls(
            np.asarray(scores, dtype=np.float64),
            np.array(predictions, dtype=np.object_),
            np.array(targets, dtype=np.object_),
        )

    def __getitem__(self, index: Any) -> Outcomes:
        return Outcomes(self.score[index], self.prediction[index], self.target[index])

    def __len__(self) -> int:
        return int(self.score.shape[-1])


def mean_score(outcomes: Outcomes) -> Floats:
    """The mean of the samples' scores, which the task's verifier gave."""
    return np.asarray(outcomes.score.mean(-1))


def precision(outcomes: Outcomes, positive: str = "yes") -> Floats:
    """Of the positive predictions, the share that is right; 0 where there are none."""
    said, gold = outcomes.prediction == positive, outcomes.target == positive
    return _ratio((said & gold).sum(-1), said.sum(-1))


def recall(outcomes: Outcomes, positive: str = "yes") -> Floats:
    """Of the positive gold answers, the share that was found; 0 where there are none."""
    said, gold = outcomes.prediction == positive, outcomes.target == positive
    return _ratio((said & gold).sum(-1), gold.sum(-1))


def f1(outcomes: Outcomes, positive: str = "yes") -> Floats:
    """The harmonic mean of precision and recall."""
    said, gold = outcomes.prediction == positive, outcomes.target == positive
    return _ratio(2 * (said & gold).sum(-1), said.sum(-1) + gold.sum(-1))


def yes_ratio(outcomes: Outcomes, positive: str = "yes") -> Floats:
    """The share of all *predictions* that is positive; an unparsed one is not."""
    return np.asarray((outcomes.prediction == positive).mean(-1))


VERIFIER_OF = {"vqa_accuracy": "vqa", "math_accuracy": "math"}
"""Names that the mean score has where one verifier gives the scores; `accuracy` it has with any."""

Metric = Callable[..., Floats]
METRICS: dict[str, Metric] = {
    "accuracy": mean_score,
    **dict.fromkeys(VERIFIER_OF, mean_score),
    **{metric.__name__: metric for metric in (precision, recall, f1, yes_ratio)},
}


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric as a task file names it.

    Attributes:
        name: one of `METRICS`.
        arguments: its keyword arguments.
    """

    name: str
    arguments: Mapping[str, str]

    def __call__(self, outcomes: Outcomes) -> Floats:
        """The value: a scalar array, or one value per resample."""
        return METRICS[self.name](outcomes, **self.arguments)


class Measure(Protocol):
    """What gives a set one figure: a `MetricSpec`, or code of others."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, outcomes: Outcomes) -> Floats: ...  # noqa: D102


def metric_arguments(name: str) -> list[str]:
    """The arguments a metric accepts."""
    return [p for p in inspect.signature(METRICS[name]).parameters if p != "outcomes"]


def standard_error(metric: Measure, outcomes: Outcomes, seed: int) -> float:
    """The standard deviation of the metric over resamples of the samples, drawn with replacement."""
    rng = np.random.default_rng(seed)
    values = [
        metric(outcomes[rng.integers(0, len(outcomes), size=(_RESAMPLES_AT_ONCE, len(outcomes)))])
        for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    return float(np.concatenate(values).std(ddof=1))


def summarise(metrics: Sequence[Measure], outcomes: Outcomes, groups: Sequence[str | None]) -> dict[str, Any]:
    """All metrics over all samples, and under `groups` the same for each group with its `n`.

    Args:
        metrics: what to compute.
        outcomes: n samples.
        groups: n names, or None for a sample that belongs to no group.
    """
    summary: dict[str, Any] = {metric.name: float(metric(outcomes)) for metric in metrics}
    names = sorted({name for name in groups if name is not None})
    if names:
        members = np.array(groups, dtype=np.object_)
        summary["groups"] = {
            name: {
                "n": int((members == name).sum()),
                **{metric.name: float(metric(outcomes[members == name])) for metric in metrics},
            }
            for name in names
        }
    return summary


def _ratio(numerator: Any, denominator: Any) -> Floats:
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    quotient: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
