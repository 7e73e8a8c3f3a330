"""Laws of the packing plan."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.data.packing import plan_packs

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(lengths=LENGTHS, slack=st.integers(0, 64), max_rows=st.none() | st.integers(1, 9), seed=st.integers(0, 3))
def test_every_document_once_within_budget_and_rows(
    lengths: list[int], slack: int, max_rows: int | None, seed: int
) -> None:
    budget = 64 + slack
    packs = plan_packs(lengths, budget=budget, max_rows=max_rows, seed=seed)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(pack for pack in packs)
    assert all(sum(lengths[i] for i in pack) <= budget for pack in packs)
    assert max_rows is None or all(len(pack) <= max_rows for pack in packs)
    assert packs == plan_packs(lengths, budget=budget, max_rows=max_rows, seed=seed)


@given(lengths=LENGTHS, budget=st.integers(64, 200))
def test_no_two_packs_could_be_one(lengths: list[int], budget: int) -> None:
    fills = sorted(sum(lengths[i] for i in pack) for pack in plan_packs(lengths, budget=budget))
    assert len(fills) < 2 or fills[0] + fills[1] > budget


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=200), budget=st.integers(64, 128))
def test_fill_is_within_the_known_bound(lengths: list[int], budget: int) -> None:
    """Best fit decreasing needs at most 11/9 of the optimum and 2/3 of a pack more (Dósa and others)."""
    least = max(-(-sum(lengths) // budget), sum(length > budget / 2 for length in lengths))
    # any optimum is at least `least` and at most one per two half-full packs of it
    packs = plan_packs(lengths, budget=budget)
    assert least <= len(packs) <= 2 * least


def test_real_lengths_leave_next_to_nothing_empty_and_take_no_time() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.8, 60_000).astype(int), 8, 2048).tolist()
    start = time.process_time()
    packs = plan_packs(lengths, budget=2048)
    assert time.process_time() - start < 5
    assert sum(lengths) / (len(packs) * 2048) > 0.995


def test_the_seed_decides_order_and_company() -> None:
    lengths = [5] * 50
    first, second = (plan_packs(lengths, budget=10, seed=seed) for seed in (0, 1))
    assert first != second
    assert len(first) == len(second) == 25


def test_a_document_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a document of 9 tokens does not fit a pack of 8"):
        plan_packs([3, 9], budget=8)


def test_nothing_gives_no_packs() -> None:
    assert plan_packs([], budget=8) == []
