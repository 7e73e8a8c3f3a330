"""Intervals cover what they say, mirror when models are exchanged, and agree with closed forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.analysis.bootstrap import interval, resampled_means, sign_test


def replicates(values: np.ndarray, count: int = 10_000, seed: int = 0, stream: str = "task") -> np.ndarray:
    return resampled_means(np.asarray(values, dtype=np.float64), replicates=count, seed=seed, stream=stream)


def test_replicates_have_the_mean_and_spread_of_the_sampling_distribution() -> None:
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=400)
    drawn = replicates(values, 100_000)
    error = values.std() / math.sqrt(len(values))  # of a mean of draws with replacement
    assert drawn.mean() == pytest.approx(values.mean(), abs=5 * error / math.sqrt(len(drawn)))
    assert drawn.std() == pytest.approx(error, rel=0.02)
    low, high = interval(drawn, 0.95)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)


def test_drawing_counts_is_drawing_rows() -> None:
    values = np.array([-1.0, 0.0, 0.3, 0.3, 1.0])
    rows = np.random.default_rng(2).integers(0, len(values), size=(100_000, len(values)))
    reference = values[rows].mean(1)
    drawn = replicates(values, 100_000)
    for value in np.linspace(-1, 1, 41) + 0.01:  # between the values that the mean can take
        assert (drawn < value).mean() == pytest.approx((reference < value).mean(), abs=0.01)


def test_two_coins() -> None:
    """Of two rows, 0 and 1, the replicates are 0, 1/2 and 1 with probability 1/4, 1/2 and 1/4."""
    drawn = replicates(np.array([0.0, 1.0]), 40_000)
    assert [(drawn == value).mean() for value in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_intervals_cover_the_true_difference_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(1000):
        shared = rng.random(300)  # how hard the question is for both
        old, new = (shared + 0.3 * rng.random(300) < threshold for threshold in (0.6, 0.66))
        low, high = interval(replicates(new.astype(float) - old, 1000, stream=str(trial)), 0.95)
        # each side is right with the probability that u + 0.3 v < t, which is t - 0.15 for these t
        covered += low <= 0.06 <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)


scores = st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.6, 1.0]), min_size=1, max_size=40).map(np.array)


@given(scores, st.integers(0, 5))
def test_exchanging_the_models_mirrors_the_interval(values: np.ndarray, seed: int) -> None:
    low, high = interval(replicates(values, 200, seed), 0.95)
    assert interval(replicates(-values, 200, seed), 0.95) == pytest.approx((-high, -low), abs=1e-12)


@given(scores, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(values: np.ndarray, random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(replicates(values, 100), replicates(np.array(shuffled), 100))


@given(scores)
def test_replicates_stay_within_the_values(values: np.ndarray) -> None:
    drawn = replicates(values, 100)
    assert drawn.shape == (100,)
    assert values.min() - 1e-9 <= drawn.min() <= drawn.max() <= values.max() + 1e-9


def test_seed_and_stream_choose_the_random_numbers() -> None:
    values = np.array([-1.0, 0.0, 1.0, 1.0, 0.0])
    assert np.array_equal(replicates(values), replicates(values))
    assert not np.array_equal(replicates(values), replicates(values, seed=1))
    assert not np.array_equal(replicates(values), replicates(values, stream="other \ud800"))


def test_scores_of_many_values_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(50)
    whole = replicates(values, 200)
    monkeypatch.setattr("mmtune.analysis.bootstrap._CELLS_AT_ONCE", 700)
    assert replicates(values, 200) == pytest.approx(whole, abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(gained, lost) + 1))
    assert sign_test(gained, lost) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_the_sign_test_knows_mcnemars_textbook_case_and_large_counts() -> None:
    assert sign_test(2, 8) == pytest.approx(0.109375)
    assert sign_test(0, 0) == 1
    z = (21_000 - 20_000 - 1) / math.sqrt(41_000)
    assert sign_test(20_000, 21_000) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
