"""Metrics against counts made by hand, and the bootstrap against the formula."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from mmtune.evaluation.score.metrics import MetricSpec, Outcomes, standard_error, summarise

ALL = [MetricSpec(name, {}) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")]


def judged(predictions: list[str | None], targets: list[str]) -> Outcomes:
    scores = [float(p == t) for p, t in zip(predictions, targets, strict=True)]
    return Outcomes.of(scores, predictions, targets)


def test_against_counts() -> None:
    draw = random.Random(0)
    predictions = [draw.choice(["yes", "no", None]) for _ in range(200)]
    targets = [draw.choice(["yes", "no"]) for _ in range(200)]
    pairs = list(zip(predictions, targets, strict=True))
    hit = sum(p == t == "yes" for p, t in pairs)
    precision, recall = hit / predictions.count("yes"), hit / targets.count("yes")
    found = summarise(ALL, judged(predictions, targets), [None] * 200)
    assert found == pytest.approx(
        {
            "accuracy": sum(p == t for p, t in pairs) / 200,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes_ratio": predictions.count("yes") / 200,
        }
    )


def test_the_yes_ratio_is_of_predictions_not_of_gold_answers() -> None:
    found = summarise(ALL, judged(["yes"] * 4, ["yes", "no", "no", "no"]), [None] * 4)
    assert found["yes_ratio"] == 1
    assert found["recall"] == 1
    assert found["precision"] == 0.25


def test_nothing_positive_gives_zero_not_a_division() -> None:
    found = summarise(ALL, judged([None, "no"], ["no", "no"]), [None] * 2)
    assert [found[name] for name in ("precision", "recall", "f1")] == [0, 0, 0]


def test_another_positive_answer() -> None:
    metric = MetricSpec("precision", {"positive": "A"})
    assert summarise([metric], judged(["A", "A", "B"], ["A", "B", "B"]), [None] * 3) == {"precision": 0.5}


def test_parts_of_a_point_count_as_such() -> None:
    """VQA accuracy gives an answer 0, 0.3, 0.6, 0.9 or 1; its mean and error are those of the parts."""
    scores = [0.0, 0.3, 0.6, 0.9, 1.0] * 40
    outcomes = Outcomes.of(scores, ["x"] * 200, ["x"] * 200)
    metric = MetricSpec("vqa_accuracy", {})
    assert summarise([metric], outcomes, [None] * 200) == {"vqa_accuracy": pytest.approx(0.56)}
    formula = statistics.stdev(scores) / math.sqrt(200)
    assert standard_error(metric, outcomes, seed=0) == pytest.approx(formula, rel=0.1)


def test_groups() -> None:
    outcomes = judged(["yes", "yes", "no", "no"], ["yes", "no", "no", "yes"])
    groups = summarise(ALL[:1], outcomes, ["x", "x", "y", None])["groups"]
    assert groups == {"x": {"n": 2, "accuracy": 0.5}, "y": {"n": 1, "accuracy": 1.0}}


def test_the_bootstrap_is_near_the_formula_and_seeded() -> None:
    outcomes = judged(["yes"] * 70 + ["no"] * 30, ["yes"] * 100)
    error = standard_error(ALL[0], outcomes, seed=1)
    assert error == pytest.approx(math.sqrt(0.7 * 0.3 / 100), rel=0.1)
    assert error == standard_error(ALL[0], outcomes, seed=1)
    assert error != standard_error(ALL[0], outcomes, seed=2)
    assert standard_error(ALL[0], outcomes[:1], seed=1) == 0
