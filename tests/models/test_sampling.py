"""Samples: drawn from the right distribution, and from nothing but seed, prompt and number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import RepetitionPenaltyLogitsProcessor

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Completion, Generator, Prompt, SamplingParams, Turn, capabilities
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import PrefixSharing
from mmtune.models.decoding.sampler import Sampler, random_numbers
from mmtune.models.decoding.stopping import StopConditions

DRAWN = SamplingParams(n=3, temperature=1.2, top_p=0.95, max_tokens=12, seed=3)


def asked(photos: list[Image.Image]) -> list[Prompt]:
    passage = "Once upon a time there was a small model. " * 3
    turns = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Who are you?"))
    return [
        Prompt.of(f"{passage}Who?", name="who"),
        Prompt.of(f"{passage}When?", name="when", response_prefix="It was"),
        Prompt.of("<image> What is this?", photos[:1], name="image"),
        Prompt(turns, name="talk"),
    ]


def spent(model: VisionLanguageModel, run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    before = model.usage
    result = run()
    return result, {name: count - before[name] for name, count in model.usage.items()}


def one_row(sampler: Sampler, logits: torch.Tensor, numbers: np.random.Generator) -> int:
    draft = Draft(np.zeros(1, dtype=np.int64), StopConditions(10**9, (), ()), None, numbers)
    return sampler.choose(logits[None], [draft])[0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=16), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.2]),
)
def test_tokens_are_left_out_as_the_papers_say(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = Sampler(params).probabilities(torch.tensor([logits]))[0].numpy()
    values = np.array(logits) / temperature
    shares = np.exp(values - values.max())
    order = np.argsort(-values)
    kept = order[: top_k or len(order)]
    inside = shares[kept] / shares[kept].sum()
    before = np.concatenate([[0], inside.cumsum()[:-1]])
    if np.abs(before - top_p).min() < 1e-5:
        return  # rounding decides
    kept = kept[before < top_p] if top_p < 1 else kept
    if np.abs(shares[kept] / shares[kept].max() - min_p).min() < 1e-5:
        return
    kept = kept[shares[kept] >= min_p * shares[kept].max()]
    wanted = np.zeros(len(logits))
    wanted[kept] = shares[kept] / shares[kept].sum()
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    sampler = Sampler(SamplingParams(temperature=1.5, top_k=6))
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, -9.0, 1.7])
    wanted = sampler.probabilities(logits[None])[0].numpy()
    numbers, draws = random_numbers(0, "a", 0), 20000
    counts = np.bincount([one_row(sampler, logits, numbers) for _ in range(draws)], minlength=len(logits))
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(wanted))
    # chi-squared with 5 degrees of freedom: 20.5 is passed once in a thousand times
    seen = wanted > 0
    assert ((counts - draws * wanted)[seen] ** 2 / (draws * wanted[seen])).sum() < 20.5


def test_random_numbers_differ_by_seed_name_and_sample() -> None:
    first = [random_numbers(*key).random() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len(set(first)) == 4
    assert random_numbers(0, "a", 0).random() == first[0]
    assert random_numbers(None, "a", 0).random() != random_numbers(None, "a", 0).random()


@pytest.mark.parametrize("batch_tokens", [1, 200, 16384])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("params", [DRAWN, SamplingParams(n=3, max_tokens=12)], ids=["drawn", "greedy"])
def test_samples_depend_on_nothing_that_is_computed_beside_them(
    seeing_model: VisionLanguageModel,
    photos: list[Image.Image],
    params: SamplingParams,
    share: bool,
    batch_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = asked(photos)
    alone = [seeing_model.generate([prompt], params)[0] for prompt in prompts]
    assert len({one.text for several in alone for one in several}) == (12 if params is DRAWN else 4)
    monkeypatch.setattr(seeing_model, "share_prefixes", share)
    monkeypatch.setattr(seeing_model, "batch_tokens", batch_tokens)
    assert seeing_model.generate(prompts, params) == alone
    assert seeing_model.generate(prompts[::-1], params) == alone[::-1]


def test_the_prompt_of_several_samples_is_computed_once(text_model: VisionLanguageModel) -> None:
    prompt = Prompt.of("What is it that you are thinking about today?")
    _, one = spent(text_model, lambda: text_model.generate([prompt], SamplingParams(temperature=1, max_tokens=9)))
    several = SamplingParams(n=4, temperature=1, max_tokens=9)
    (found,), four = spent(text_model, lambda: text_model.generate([prompt], several))
    assert four["prompt_tokens"] == one["prompt_tokens"]
    assert four["reused_tokens"] == 3 * one["prompt_tokens"]
    assert four["generated_tokens"] == sum(completion.tokens for completion in found)
    again, same = spent(text_model, lambda: text_model.generate([prompt] * 4, SamplingParams(max_tokens=9)))
    assert same == spent(text_model, lambda: text_model.generate([prompt], SamplingParams(n=4, max_tokens=9)))[1]
    assert len({one.text for (one,) in again}) == 1
    assert same["reused_tokens"] == 3 * one["prompt_tokens"]


def test_an_image_of_several_samples_is_encoded_once(
    seeing_model: VisionLanguageModel, photos: list[Image.Image]
) -> None:
    _, used = spent(seeing_model, lambda: seeing_model.generate([Prompt.of("<image>?", photos[:1])], DRAWN))
    assert used["tower_passes"] == 1


def test_answers_that_outgrow_the_batch_wait_and_are_the_same(
    text_model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    write = PrefixSharing._write

    def counted(self: PrefixSharing, drafts: list[Draft], sampler: Sampler) -> None:
        batches.append(len(drafts))
        write(self, drafts, sampler)

    monkeypatch.setattr(PrefixSharing, "_write", counted)
    prompts = [Prompt.of(f"Question {number}") for number in range(8)]
    params = SamplingParams(temperature=0.4, max_tokens=600)
    together = text_model.generate(prompts, params)
    assert batches == [8]
    assert sum(one.tokens > 260 for (one,) in together) > 4
    batches.clear()
    monkeypatch.setattr(text_model, "batch_tokens", 2500)
    assert text_model.generate(prompts, params) == together
    assert batches[0] == 8
    assert len(batches) > 1
    short = SamplingParams(max_tokens=4000, stop=tuple("abcdefghijklmnopqrstuvwxyz"))
    batches.clear()
    text_model.generate(prompts, short)
    assert batches == [8]  # room is taken by what answers need, not by what they may have


def test_penalties_are_those_of_transformers_and_of_the_page_on_presence(text_model: VisionLanguageModel) -> None:
    prompt = np.array([5, 7, 7, -3])
    draft = Draft(prompt, StopConditions(99, (), ()), text_model.tokenizer, random_numbers(0, "", 0))
    for token in (2, 9, 9):
        draft.append(token)
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    said = torch.tensor([[5, 7, 2, 9]])
    found = Sampler(SamplingParams(repetition_penalty=1.3)).penalized(logits, [draft])
    assert torch.equal(found, RepetitionPenaltyLogitsProcessor(1.3)(said, logits.clone()))
    present = Sampler(SamplingParams(presence_penalty=0.5)).penalized(logits, [draft])
    wanted = logits.clone()
    wanted[0, [2, 9]] -= 0.5
    torch.testing.assert_close(present, wanted)
    assert text_model.answer("Hi", max_tokens=30) != text_model.answer("Hi", max_tokens=30, repetition_penalty=5.0)


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_log_probabilities_are_the_models_own(text_model: VisionLanguageModel, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=6, logprobs=True, stop=("\x00",))
    ((found,),) = text_model.generate([Prompt.of("Hi")], params)
    assert found.logprob is not None
    ids = text_model.tokenizer(found.text, add_special_tokens=False)["input_ids"]
    if len(ids) == found.tokens and "\ufffd" not in found.text:
        (wanted,) = text_model.loglikelihood("Hi", [found.text])
        assert found.logprob == pytest.approx(wanted, abs=1e-3)
    ((without,),) = text_model.generate([Prompt.of("Hi")], SamplingParams(max_tokens=6))
    assert without.logprob is None


def test_it_is_a_generator_that_declares_what_it_can(
    text_model: VisionLanguageModel, seeing_model: VisionLanguageModel
) -> None:
    assert isinstance(text_model, Generator)
    assert capabilities(text_model) == {"loglikelihood", "sampling", "window", "batching"}
    assert capabilities(seeing_model) == {"loglikelihood", "sampling", "window", "batching", "images"}
    assert capabilities(object()) == frozenset()
    assert text_model.generate([]) == []


def test_log_likelihoods_of_prompts_are_those_of_strings(text_model: VisionLanguageModel) -> None:
    prompt = Prompt.of("Is it?", system="Be brief.", response_prefix="It")
    strings = text_model.loglikelihood(["Is it?"], [["is", "was"]], system="Be brief.", response_prefix="It")
    assert text_model.loglikelihood([prompt], [["is", "was"]]) == strings
    assert text_model.loglikelihood(prompt, ["is", "was"]) == strings[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 0), ("n", 1.0), ("top_k", -1), ("min_p", 2), ("presence_penalty", "1"), ("repetition_penalty", 0),
     ("thinking_budget", -1), ("seed", 2**63), ("seed", -1), ("seed", 1.0), ("stop", "a"), ("thinking_overrun", "x")],
)  # fmt: skip
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} "):
        SamplingParams(**{name: value})


def test_a_response_is_all_that_was_written() -> None:
    assert Completion("yes").response == "yes"
    assert Completion("yes", "<think>so</think>").response == "<think>so</think>\n\nyes"
    assert Completion("", "<think>so", "thinking").response == "<think>so"
