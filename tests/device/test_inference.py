"""Answers on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtune import SamplingParams, VisionLanguageModel
from mmtune.generation.chat import Chat
from mmtune.interfaces import Prompt
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

SHARED = "A passage that all prompts begin with, so that it is computed once. " * 2
PROMPTS = [SHARED + question for question in ("Who?", "When was that, and where exactly?", "Why?")]


def build(llama: Path, tower_weights: Path) -> VisionLanguageModel:
    tower = VisionOptions("timm:test_vit", weights=str(tower_weights), grid=2)
    return VisionLanguageModel.assemble(ModelSpec(str(llama), tower, template="chatml")).eval()


@pytest.fixture(scope="module")
def here(llama: Path, tower_weights: Path) -> VisionLanguageModel:
    return build(llama, tower_weights)


@pytest.fixture(scope="module")
def there(llama: Path, tower_weights: Path) -> VisionLanguageModel:
    return build(llama, tower_weights).to("cuda")


SAMPLING = {
    "greedy": {},
    "samples": {"n": 3, "temperature": 1.0, "seed": 1},
    "narrowed": {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 2},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3},
}


@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
def test_completions(here: VisionLanguageModel, there: VisionLanguageModel, options: dict[str, float]) -> None:
    params = SamplingParams(max_tokens=24, logprobs=True, **options)  # type: ignore[arg-type]
    prompts = [Prompt.of(text) for text in PROMPTS]
    ours, theirs = there.generate(prompts, params), here.generate(prompts, params)
    assert [[one.text for one in some] for some in ours] == [[one.text for one in some] for some in theirs]
    logprobs = [[one.logprob for some in found for one in some] for found in (ours, theirs)]
    assert logprobs[0] == pytest.approx(logprobs[1], rel=1e-3)


def test_images(here: VisionLanguageModel, there: VisionLanguageModel, photos: list[Image.Image]) -> None:
    prompts = ["<image> What is this?", "<image> And this?"]
    given = [photos[0], photos[1]]
    assert there.answer(prompts, given, max_tokens=16) == here.answer(prompts, given, max_tokens=16)


def test_likelihoods(here: VisionLanguageModel, there: VisionLanguageModel) -> None:
    choices = [["a", "b", "a longer one"]] * len(PROMPTS)
    ours, theirs = (model.loglikelihood(PROMPTS, choices) for model in (there, here))
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_chat(here: VisionLanguageModel, there: VisionLanguageModel) -> None:
    def talk(model: VisionLanguageModel) -> list[str]:
        chat, sampling = Chat(model), SamplingParams(max_tokens=20)
        return ["".join(chat.say(text, sampling=sampling)) for text in ("Hello", "And then?")]

    assert talk(there) == talk(here)


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_all_of_a_quantised_model_is_where_it_was_asked_for(llama_of_64s: Path, quantise: str, pretended: bool) -> None:
    if pretended:
        pytest.skip("bitsandbytes has no kernels for a pretended GPU")
    lora = LoraOptions(r=4, alpha=8)
    spec = ModelSpec(str(llama_of_64s), template="chatml", lora=lora, quantise=quantise)  # type: ignore[arg-type]
    for device in ("cuda", "cpu"):
        model = VisionLanguageModel.assemble(spec, device=torch.device(device)).to(device)
        found = {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]}
        for parameter in model.parameters():
            state = getattr(parameter, "quant_state", None)
            nested = getattr(state, "state2", None)
            scales = [getattr(one, name, None) for one in (state, nested) for name in ("absmax", "code", "offset")]
            scales += [getattr(parameter, name, None) for name in ("CB", "SCB")]
            found |= {tensor.device.type for tensor in scales if isinstance(tensor, torch.Tensor)}
        assert found == {device}


def test_adapters_begin_alike_everywhere(llama: Path) -> None:
    spec = ModelSpec(str(llama), template="chatml", lora=LoraOptions(r=4, alpha=8))
    here = VisionLanguageModel.assemble(spec).state_dict()
    with torch.device("cuda"):
        there = VisionLanguageModel.assemble(spec).state_dict()
    adapters = [name for name in here if "lora_" in name]
    assert adapters
    assert all(torch.equal(there[name].cpu(), here[name]) for name in adapters)
