"""What a model can read at once, and what becomes of prompts and answers beyond it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Prompt, SamplingParams, Turn
from mmtune.models.spec import ModelSpec
from mmtune.models.window import room_left, window_of

Build = Callable[..., VisionLanguageModel]
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("family", "given", "window"),
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("gpt2", {"n_positions": 512}, 512),
        ("opt", {"max_position_embeddings": 100}, 100),
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        (
            "qwen2",
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        ("mistral", {"max_position_embeddings": 1000, "sliding_window": 10}, 1000),
        ("gemma3", {}, 131072),
        ("bloom", {}, None),
        ("mpt", {}, None),
        ("falcon", {"alibi": True}, None),
        ("mamba", {}, None),
    ],
)
def test_the_window_of_a_family(family: str, given: dict[str, Any], window: int | None) -> None:
    assert window_of(AutoConfig.for_model(family, **given)) == window


@pytest.fixture(scope="module")
def narrow(llama: Path) -> VisionLanguageModel:
    """A model that reads 100 tokens, each a byte."""
    model = VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml")).eval()
    model.base_language.config.max_position_embeddings = 100
    with torch.no_grad():
        model.base_language.get_output_embeddings().weight[256:] = 0  # no marker ends an answer
    return model


def prompt_of(model: VisionLanguageModel, tokens: int, begin: str = "") -> str:
    """A prompt of so many tokens, template and all."""
    rest = tokens - len(model.tokenizer(HEAD + begin + TAIL, add_special_tokens=False)["input_ids"])
    return begin + "abcdefghij"[: rest % 10] + "klmnopqrst" * (rest // 10)


def test_an_answer_ends_at_the_window_and_says_so(narrow: VisionLanguageModel) -> None:
    prompts = [Prompt.of(prompt_of(narrow, tokens, f"{n}. ")) for n, tokens in enumerate((60, 90, 95, 60))]
    before = narrow.usage["generated_tokens"]
    answers = [one for (one,) in narrow.generate(prompts, SamplingParams(max_tokens=20))]
    assert narrow.usage["generated_tokens"] - before == 20 + 10 + 5 + 20
    assert [answer.finish_reason for answer in answers] == ["length", "window", "window", "length"]
    assert [answer.tokens for answer in answers] == [20, 10, 5, 20]
    narrow.base_language.config.max_position_embeddings = 1000
    wide = [one for (one,) in narrow.generate(prompts, SamplingParams(max_tokens=20))]
    narrow.base_language.config.max_position_embeddings = 100
    assert all(whole.text.startswith(cut.text.rstrip("\ufffd")) for whole, cut in zip(wide, answers, strict=True))
    ((stopped,),) = narrow.generate([prompts[1]], SamplingParams(max_tokens=20, stop=(wide[1].text[0],)))
    assert stopped.finish_reason == "stop"


def test_a_prompt_beyond_the_window_is_refused(narrow: VisionLanguageModel) -> None:
    assert narrow.answer(prompt_of(narrow, 99), max_tokens=5)
    with pytest.raises(UserError, match=r"prompt 2 for .*: 100 tokens and 1 to follow, of 100 that it reads at once"):
        narrow.answer(["a", prompt_of(narrow, 100)], max_tokens=5)
    assert narrow.loglikelihood(prompt_of(narrow, 95), ["a", "abcde"])
    with pytest.raises(UserError, match=r"prompt 1 for .*: 95 tokens and 6 to follow, of 100"):
        narrow.loglikelihood(prompt_of(narrow, 95), ["a", "abcdef"])
    with pytest.raises(UserError, match=r"past_window 'cut'"):
        narrow.answer("a", past_window="cut")


def test_a_shortened_prompt_keeps_its_end_and_its_template(narrow: VisionLanguageModel) -> None:
    system, room = "Be brief.", 20
    whole = prompt_of(narrow, 300, begin="passage ") + " question?"
    fixed = f"<|im_start|>system\n{system}<|im_end|>\n{HEAD}{TAIL}"
    kept = 100 - room - len(narrow.tokenizer(fixed, add_special_tokens=False)["input_ids"])
    options: dict[str, Any] = {"system": system, "max_tokens": room}
    shortened = narrow.answer(whole, past_window="shorten", **options)
    assert shortened == narrow.answer(whole[-kept:], **options)
    assert shortened != narrow.answer(whole[-kept + 1 :], **options)
    (figures,) = narrow.loglikelihood([whole], [["ab", "abcd"]], system=system, past_window="shorten")
    assert figures == pytest.approx(
        narrow.loglikelihood(whole[-(kept + room - 4) :], ["ab", "abcd"], system=system), abs=1e-4
    )
    with pytest.raises(UserError, match=r"its template and photos alone take 1\d\d tokens"):
        narrow.answer(whole, system="x" * 90, past_window="shorten")


def test_half_of_the_window_is_for_the_prompt(narrow: VisionLanguageModel) -> None:
    whole = prompt_of(narrow, 200)
    narrow.past_window = "shorten"
    ((long,),) = narrow.generate([Prompt.of(whole)], SamplingParams(max_tokens=1000))
    narrow.past_window = "refuse"
    assert long.finish_reason == "window"
    kept = whole[-(50 - len(narrow.tokenizer(HEAD + TAIL)["input_ids"])) :]
    assert long.text == narrow.answer(kept, max_tokens=50)


def test_photos_stay(build: Build, photos: list[Image.Image]) -> None:
    model = build(vision=True)
    model.base_language.config.max_position_embeddings = 80
    whole = "<image> and <image>: " + "word " * 100 + "which?"
    assert model.too_long([Prompt.of(whole, [None] * 2)]) == {0: len(whole) - 14 + 2 * 4 + 19}
    passes = model.usage["tower_passes"]
    answer = model.answer(whole, photos[:2], max_tokens=5, past_window="shorten")
    assert isinstance(answer, str)
    assert model.usage["tower_passes"] == passes + 2


def test_prompts_that_are_too_long_are_found_before(narrow: VisionLanguageModel) -> None:
    prompts = [Prompt.of(prompt_of(narrow, tokens)) for tokens in (50, 99, 100, 200)]
    short, long = (SamplingParams(max_tokens=tokens) for tokens in (10, 1000))
    assert narrow.too_long(prompts) == narrow.too_long(prompts, params=short) == {2: 100, 3: 200}
    assert narrow.too_long(prompts, choices=[["a", "bcd"]] * 4) == {1: 102, 2: 103, 3: 203}
    narrow.past_window = "shorten"
    assert narrow.too_long(prompts, params=short) == {1: 99, 2: 100, 3: 200}
    assert narrow.too_long(prompts, params=long) == {1: 99, 2: 100, 3: 200}
    narrow.past_window = "refuse"


def test_an_answer_has_the_room_that_is_left() -> None:
    assert [room_left(tokens, 20, 64) for tokens in (10, 44, 45, 63, 64, 70)] == [20, 20, 19, 1, 0, -6]
    assert room_left(10**9, 20, None) == 20


def test_a_conversation_loses_its_oldest_turns_first(build: Build, photos: list[Image.Image]) -> None:
    model = build(vision=True)
    model.base_language.config.max_position_embeddings = 200
    model.past_window = "shorten"
    talk = [Turn("user", "<image>" + "a" * 180), Turn("assistant", "b" * 40), Turn("user", "<image> c?")]
    before = model.tower.images_encoded if model.tower else 0
    said = model.generate([Prompt(tuple(talk), tuple(photos[:2]))], SamplingParams(max_tokens=8))
    assert said == model.generate([Prompt((talk[2],), (photos[1],))], SamplingParams(max_tokens=8))
    assert model.tower is not None
    assert model.tower.images_encoded == before + 2


def test_learnt_positions_end_in_no_index_error(llama: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    PreTrainedTokenizerFast.from_pretrained(llama).save_pretrained(tmp_path)
    config = GPT2Config(
        vocab_size=259, n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=258
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = VisionLanguageModel.assemble(ModelSpec(str(tmp_path), template="chatml")).eval()
    assert model.window == 64
    prompts = [prompt_of(model, tokens) for tokens in (40, 55, 63)]
    asked = [Prompt.of(prompt) for prompt in prompts]
    greedy, drawn = (model.generate(asked, SamplingParams(max_tokens=30, temperature=t)) for t in (0, 1))
    assert all(len(one.text) <= 24 for (one,) in [*greedy, *drawn])
    assert {one.finish_reason for (one,) in [*greedy, *drawn]} <= {"window", "stop"}
    (figure,) = model.loglikelihood(prompts[1], ["abcdefghi"])
    ids = model.tokenizer(HEAD + prompts[1] + TAIL + "abcdefghi", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model.base_language(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert figure == pytest.approx(sum(float(logits[place - 1, ids[place]]) for place in range(55, 64)), abs=1e-3)
    for call in (lambda: model.loglikelihood(prompts[1], ["abcdefghij"]), lambda: model.answer("a" * 64)):
        with pytest.raises(UserError, match="of 64 that it reads at once"):
            call()
    assert model.answer("a" * 64, max_tokens=5, past_window="shorten")
