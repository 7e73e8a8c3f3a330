from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mmtune.models.generation import first_stop, token_budget_batches


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_prompt_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, following in itertools.pairwise(batches):  # none is cut before it is full
        assert lengths[batch[0]] * (len(batch) + 1) > budget
        assert min(lengths[i] for i in batch) >= max(lengths[i] for i in following)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", max_size=3), max_size=3))
def test_the_first_stop_ends_where_no_earlier_one_begins(text: str, stops: list[str]) -> None:
    end = first_stop(text, stops)
    begins = [text.find(s) for s in stops if s and s in text]
    if not begins:
        assert end is None
    else:
        at = min(begins)
        assert end == at + min(len(s) for s in stops if s and text.startswith(s, at))
