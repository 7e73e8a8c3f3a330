"""Answers as their tokens come, and batches that fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.common.errors import UserError
from mmtune.models.decoding.batches import in_batches, longest_first, padded_batch
from mmtune.models.decoding.stopping import StopConditions, StreamDecoder, first_stop
from mmtune.models.language import load_tokenizer


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_prompt_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches: list[list[int]] = []
    in_batches(longest_first(lengths), lengths, budget, padded_batch(lengths), batches.append)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, following in itertools.pairwise(batches):  # none is cut before it is full
        assert lengths[batch[0]] * (len(batch) + 1) > budget
        assert min(lengths[i] for i in batch) >= max(lengths[i] for i in following)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 400))
def test_batches_are_halved_until_they_fit(lengths: list[int], room: int) -> None:
    ran: list[int] = []

    def run(batch: list[int]) -> None:
        if max(lengths[i] for i in batch) * len(batch) > room:
            raise torch.OutOfMemoryError
        ran.extend(batch)

    left = in_batches(longest_first(lengths), lengths, 2000, padded_batch(lengths), run)
    assert ran == longest_first(lengths)
    assert (left < 2000) is (max(lengths) * len(lengths) > room)
    lengths.append(room + 1)
    with pytest.raises(UserError, match=rf"out of memory with a single prompt of {room + 1} tokens"):
        in_batches(longest_first(lengths), lengths, 2000, padded_batch(lengths), run)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", max_size=3), max_size=3))
def test_the_first_stop_ends_where_no_earlier_one_begins(text: str, stops: list[str]) -> None:
    end = first_stop(text, stops)
    begins = [text.find(s) for s in stops if s and s in text]
    if not begins:
        assert end is None
    else:
        at = min(begins)
        assert end == at + min(len(s) for s in stops if s and text.startswith(s, at))


@pytest.fixture(scope="module", params=["llama", "sentencepiece_llama"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(str(request.getfixturevalue(request.param)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_answer_says_what_all_its_tokens_say(tokenizer: Any, data: st.DataObject) -> None:
    """However it is decoded: characters of several tokens, spaces at a border, special tokens, stop strings."""
    pieces = st.one_of(
        st.lists(st.integers(0, len(tokenizer) - 1), max_size=40),
        st.text(max_size=60).map(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]),
        st.sampled_from(["Grüße  an 東京 🙂‍↔️ – a < b", "  \n\n  ", "it 's a do n't , ."]).map(
            lambda text: tokenizer(text * 5, add_special_tokens=False)["input_ids"]
        ),
    )
    ids = list(itertools.chain.from_iterable(data.draw(st.lists(pieces, max_size=12))))
    ending = StopConditions(
        10**6, data.draw(st.lists(st.sampled_from(["b", "\n\n", "東京 🙂", "'s a d"]), max_size=1)), []
    )
    answer = StreamDecoder(ending, tokenizer)
    for number, token in enumerate(ids, 1):
        over = answer.append(token)
        text = tokenizer.decode(ids[:number], skip_special_tokens=True)
        stop = first_stop(text, ending.stop)
        assert (answer.text, answer.tokens) == (text[:stop], number)
        assert over is answer.done is (stop is not None)
        if over:
            break


def test_a_token_of_a_long_answer_costs_what_one_of_a_short_one_does(tokenizer: Any) -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            decoded.append(len(ids))
            return str(tokenizer.decode(ids, **options))

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    answer = StreamDecoder(StopConditions(10**6, (), []), Counting())
    for token in tokenizer("The quick brown fox, 42 Grüße. " * 60, add_special_tokens=False)["input_ids"]:
        answer.append(token)
    assert answer.tokens > 500
    assert max(decoded) < 80
    assert answer.text.endswith("Grüße. ")


def test_an_answer_ends_at_its_end_token_or_its_limit(tokenizer: Any) -> None:
    ids = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    answer = StreamDecoder(StopConditions(100, (), [end]), tokenizer)
    assert [answer.append(token) for token in [*ids, end]] == [False] * len(ids) + [True]
    assert (answer.text, answer.tokens) == ("Hello there", len(ids) + 1)
    limited = StreamDecoder(StopConditions(2, (), [end]), tokenizer)
    assert [limited.append(token) for token in ids[:2]] == [False, True]
