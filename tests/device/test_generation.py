"""Answers, likelihoods and conversations on a GPU are those of a CPU, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.evaluation.run.load_model import load_model
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Prompt, SamplingParams
from mmtune.models.decoding import engine
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

PASSAGE = "A passage that several questions share, long enough to be worth sharing. "
TEXTS = [PASSAGE + "Who read it?", PASSAGE + "When?", PASSAGE.strip(), "Short.", "<image>\nWhat is this?"]
CHOICES = [["yes", "no", "yes indeed"], ["now", "never"], ["a"], ["b", "bc"], ["a cat", "a dog"]]

Pair = tuple[VisionLanguageModel, VisionLanguageModel]


@pytest.fixture(scope="module")
def pair(llama: Path, tower_weights: Path, device: torch.device) -> Pair:
    """Return one model twice: on the GPU and on the CPU."""
    vision = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    spec = ModelSpec(str(llama), vision, template="chatml", lora=LoraOptions(r=4, alpha=8))
    models = []
    for where in (device, torch.device("cpu")):
        model = VisionLanguageModel.assemble(spec)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        models.append(model.to(where).eval())
    return models[0], models[1]


@pytest.fixture
def shown(photos: list[Image.Image]) -> list[list[Image.Image]]:
    return [[], [], [], [], photos[:1]]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 1},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "several": {"n": 3, "temperature": 1.0, "seed": 2, "logprobs": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_answers(pair: Pair, shown: list[list[Image.Image]], options: dict[str, Any]) -> None:
    prompts = [Prompt.of(text, images) for text, images in zip(TEXTS, shown, strict=True)]
    there, here = (model.generate(prompts, SamplingParams(max_tokens=12, **options)) for model in pair)
    assert [[one.response for one in of] for of in there] == [[one.response for one in of] for of in here]
    if options.get("logprobs"):
        for ours, theirs in zip(there, here, strict=True):
            assert [c.logprob for c in ours] == pytest.approx([c.logprob for c in theirs], abs=1e-3)


@pytest.mark.parametrize("share", [True, False])
def test_likelihoods(pair: Pair, shown: list[list[Image.Image]], share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in pair:
        monkeypatch.setattr(model, "share_prefixes", share)
    there, here = (model.loglikelihood(TEXTS, CHOICES, shown) for model in pair)
    for ours, theirs in zip(there, here, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_conversation(pair: Pair, photos: list[Image.Image]) -> None:
    """Write two turns with an image and an answer that is not read to its end."""
    spoken = []
    for model in pair:
        chat, sampling = Chat(model), SamplingParams(max_tokens=10)
        pieces = ["".join(chat.say("<image>\nWhat is this?", photos[:1], sampling=sampling))]
        broken = chat.say("And now?", sampling=sampling)
        pieces.append(next(broken))
        broken.close()
        pieces.append("".join(chat.say("Go on", sampling=sampling)))
        assert chat.counts.reused > 0
        spoken.append(pieces)
    assert spoken[0] == spoken[1]


def test_a_saved_model_is_loaded_onto_the_device(pair: Pair, tmp_path: Path, device: torch.device) -> None:
    """Load in bfloat16 where `auto` finds a GPU."""
    pair[0].save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), "auto")
    assert isinstance(model, VisionLanguageModel)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {device}
    assert model.base_language.get_input_embeddings().weight.dtype == torch.bfloat16
    assert len(model.answer(["hi"], max_tokens=3)) == 1
    for name, tensor in VisionLanguageModel.from_pretrained(tmp_path / "model").named_parameters():
        assert torch.equal(tensor, pair[1].get_parameter(name)), name


def test_a_batch_that_is_too_large_is_halved(
    pair: Pair, memory_left: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give less memory than all prompts need, and enough for one."""
    model = pair[0]
    monkeypatch.setattr(model, "share_prefixes", False)
    prompts = [f"{number} " + "word " * 300 for number in range(8)]
    wanted = [model.answer([prompt], max_tokens=4)[0] for prompt in prompts]
    budgets: list[int] = []
    score = engine.PrefixSharing._write

    def note(self: engine.PrefixSharing, drafts: Any, sampler: Any) -> None:
        budgets.append(len(drafts))
        score(self, drafts, sampler)

    monkeypatch.setattr(engine.PrefixSharing, "_write", note)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert model.answer(prompts, max_tokens=4, batch_tokens=10**5) == wanted
    assert budgets == [8]
    used = torch.cuda.max_memory_allocated() - before
    budgets.clear()
    memory_left(int(0.7 * used))
    assert model.answer(prompts, max_tokens=4, batch_tokens=2**14) == wanted
    assert budgets[0] == 8
    assert budgets[-1] < 8


def test_a_prompt_that_does_not_fit_ends_in_a_line(pair: Pair, memory_left: Callable[[int], None]) -> None:
    memory_left(2**16)
    with pytest.raises(UserError, match="out of memory with a single prompt of") as caught:
        pair[0].answer(["word " * 600], max_tokens=4)
    assert "\n" not in str(caught.value)
