"""Sharing prefixes, packing and batching change no answer and no likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import PromptEncoder, prompt_text
from mmtune.interfaces import Prompt
from mmtune.models.decoding import engine as inference
from mmtune.models.spec import LoraOptions

Build = Callable[..., VisionLanguageModel]

PASSAGE = "Once upon a time there was a very small model that read passages all day long. " * 3
PROMPTS = [
    *(PASSAGE + question for question in ("Who read?", "Who read it?", "When was it?", "How long was the day?")),
    PASSAGE.strip(),
    "A short one.",
    "A short one.",  # twice
    "Another.",
    "<image>\nWhat is this?",
    "<image>\nWhat is this not?",
    "<image>\nWhat is this?",
    "<image> and <image>: which is larger?",
]
CHOICES = [["yes", "no", "yes or no", "yes indeed"][: 1 + i % 4] for i in range(len(PROMPTS))]


@pytest.fixture
def shown(photos: list[Image.Image]) -> list[list[Image.Image]]:
    return [*([] for _ in range(8)), photos[:1], photos[:1], photos[1:2], [photos[2], photos[0]]]


def spent(model: VisionLanguageModel, run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    before = model.usage
    result = run()
    return result, {name: count - before[name] for name, count in model.usage.items()}


def reference_logits(model: VisionLanguageModel, prompt: str, photos: list[Image.Image], said: str) -> torch.Tensor:
    """Logits [tokens, vocabulary] of transformers' own forward for one prompt and what follows it."""
    encoder = PromptEncoder(model)
    text = prompt_text(model, Prompt.of(prompt, photos), 0)
    with torch.inference_mode():
        embeddings = encoder.embed(encoder.token_ids(text + said, photos))
        logits: torch.Tensor = model.base_language(inputs_embeds=embeddings[None]).logits[0]
    return logits


@pytest.mark.parametrize("pack_tokens", [32, 2048])
@pytest.mark.parametrize("batch_tokens", [1, 300, 1000, 16384])
def test_answers_do_not_depend_on_what_is_computed_together(
    seeing_model: VisionLanguageModel,
    shown: list[list[Image.Image]],
    batch_tokens: int,
    pack_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = seeing_model
    alone = [model.answer([p], [s], max_tokens=9, stop=["e"])[0] for p, s in zip(PROMPTS, shown, strict=True)]
    assert len(set(alone)) > 5
    monkeypatch.setattr(inference, "_PACK_TOKENS", pack_tokens)

    def ask() -> list[str]:
        return model.answer(PROMPTS, shown, max_tokens=9, stop=["e"], batch_tokens=batch_tokens)

    together, sharing = spent(model, ask)
    monkeypatch.setattr(model, "share_prefixes", False)
    apart, unshared = spent(model, ask)
    assert together == apart == alone
    assert unshared["reused_tokens"] == 0
    assert sharing["prompt_tokens"] + sharing["reused_tokens"] == unshared["prompt_tokens"]
    assert sharing["tower_passes"] == 3
    if batch_tokens > 10000:
        assert sharing["reused_tokens"] > 3 * len(PASSAGE)


@pytest.mark.parametrize("pack_tokens", [32, 2048])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 500, 16384])
def test_likelihoods_are_those_of_transformers(
    seeing_model: VisionLanguageModel,
    shown: list[list[Image.Image]],
    batch_tokens: int,
    share: bool,
    pack_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = seeing_model
    monkeypatch.setattr(inference, "_PACK_TOKENS", pack_tokens)
    monkeypatch.setattr(model, "share_prefixes", share)
    values, used = spent(model, lambda: model.loglikelihood(PROMPTS, CHOICES, shown, batch_tokens=batch_tokens))
    for prompt, photos, choices, found in zip(PROMPTS, shown, CHOICES, values, strict=True):
        for choice, value in zip(choices, found, strict=True):
            logits = reference_logits(model, prompt, photos, choice).float().log_softmax(-1)
            tokens = model.tokenizer(choice, add_special_tokens=False)["input_ids"]
            wanted = sum(float(logits[-1 - len(tokens) + k, token]) for k, token in enumerate(tokens))
            assert value == pytest.approx(wanted, abs=2e-4)
    assert bool(used["reused_tokens"]) == (share and batch_tokens > 1)
    assert used["generated_tokens"] == 0


def test_a_passage_is_computed_once_for_its_questions_and_options(text_model: VisionLanguageModel) -> None:
    model = text_model
    _, one = spent(model, lambda: model.loglikelihood([PASSAGE + "Who?"], [["yes"]]))
    questions = [PASSAGE + f"Who? {i}" for i in range(9)]
    _, many = spent(model, lambda: model.loglikelihood(questions, [["yes", "no", "maybe"]] * 9))
    assert many["prompt_tokens"] < one["prompt_tokens"] + 9 * 60


def test_adapters_are_part_of_what_is_computed(build: Build, text_model: VisionLanguageModel) -> None:
    model = build(lora=LoraOptions(r=2, alpha=4))
    (with_adapters,) = model.loglikelihood(["hi"], [["yes", "no"]])
    assert with_adapters != pytest.approx(text_model.loglikelihood(["hi"], [["yes", "no"]])[0], abs=1e-2)
    model.merge_adapters()
    assert model.loglikelihood(["hi"], [["yes", "no"]])[0] == pytest.approx(with_adapters, abs=1e-4)


@pytest.mark.parametrize("fails", [torch.OutOfMemoryError, "DefaultCPUAllocator: can't allocate memory: 9 bytes"])
def test_batches_shrink_when_memory_runs_out(
    text_model: VisionLanguageModel, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model
    prompts = [f"Question {i}" + "?" * i for i in range(20)]
    wanted, undisturbed = spent(model, lambda: model.answer(prompts, max_tokens=5))
    forward = type(model.base_language.base_model).forward
    sizes: list[int] = []

    def limited(self: Any, *, inputs_embeds: torch.Tensor, **options: Any) -> Any:
        sizes.append(inputs_embeds.shape[1])
        if inputs_embeds.shape[1] > 150:
            raise RuntimeError(fails) if isinstance(fails, str) else fails
        return forward(self, inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(type(model.base_language.base_model), "forward", limited)
    answers, halved = spent(model, lambda: model.answer(prompts, max_tokens=5))
    assert answers == wanted
    assert halved["generated_tokens"] == undisturbed["generated_tokens"]
    assert max(sizes) > 150
    with pytest.raises(UserError, match=r"out of memory with a single prompt of \d+ tokens"):
        model.answer(["a very long prompt. " * 20], max_tokens=5)


def test_another_error_is_no_reason_to_try_again(
    text_model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, **_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(text_model.base_language.base_model), "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        text_model.answer(["hi"])


def test_the_attention_is_put_back(text_model: VisionLanguageModel) -> None:
    config = text_model.base_language.config
    before = config._attn_implementation
    text_model.answer(["hi"])
    assert config._attn_implementation == before


def test_an_empty_choice_is_refused(text_model: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match="prompt 2: a choice is empty"):
        text_model.loglikelihood(["hi", "ho"], [["a"], ["b", ""]])


def test_choices_for_every_prompt(text_model: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match="2 prompts but choices for 1"):
        text_model.loglikelihood(["hi", "ho"], [["a"]])
