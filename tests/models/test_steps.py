"""Steps of decoding in fixed places of memory, as a CUDA graph replays them, against steps that are computed anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig

from mmtune import SamplingParams, VisionLanguageModel
from mmtune.generation.chat import Chat
from mmtune.models.decoding import steps
from mmtune.models.decoding.steps import Replay, Steps

PROMPTS = ["a", "What is that?", "Tell me something longer, and then even more of it. " * 3, "b" * 40, "No."]


class Captured:
    """Stands for a CUDA graph: computes anew from the same inputs, after a first time that is thrown away."""

    def __init__(self) -> None:
        self.graphs = 0
        self.rows: list[int] = []

    def __call__(self, compute: Replay) -> Replay:
        compute()
        self.graphs += 1

        def replay() -> torch.Tensor:
            logits = compute()
            self.rows.append(len(logits))
            return logits

        return replay


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Every decoding captures its steps, from the third on."""
    found, original = Captured(), Steps.__init__

    def init(self: Steps, passes: Any, decoding: Any) -> None:
        original(self, passes, decoding, capture=found)

    monkeypatch.setattr(Steps, "__init__", init)
    monkeypatch.setattr(steps, "_EAGER", 2)
    return found


@pytest.fixture(scope="module")
def windowed(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral that sees 24 tokens back."""
    from transformers import MistralForCausalLM

    folder = tmp_path_factory.mktemp("mistral")
    settings = {
        name: value
        for name, value in LlamaConfig.from_pretrained(llama).to_dict().items()
        if name in MistralConfig().to_dict() and name != "model_type"
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MistralForCausalLM(MistralConfig(**{**settings, "sliding_window": 24})).save_pretrained(folder)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(params=["llama", "windowed"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(request.getfixturevalue(request.param), template="chatml")


def answers(model: VisionLanguageModel, **options: Any) -> list[str]:
    return model.answer(PROMPTS, **options)


def test_the_same_answers(model: VisionLanguageModel, captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = answers(model, max_tokens=300, temperature=1.0, seed=3)
    assert captured.graphs >= 2  # the room for tokens has grown
    monkeypatch.setattr(steps, "_EAGER", 10**6)
    assert answers(model, max_tokens=300, temperature=1.0, seed=3) == replayed


def test_fewer_sequences_take_a_smaller_graph(model: VisionLanguageModel, captured: Captured) -> None:
    stop = [chr(code) for code in range(ord("a"), ord("h"))]  # answers end at different steps
    answers(model, max_tokens=120, temperature=1.0, seed=1, stop=stop)
    assert captured.rows == sorted(captured.rows, reverse=True)
    assert len(set(captured.rows)) > 1


def test_a_step_that_cannot_be_captured_is_computed(
    model: VisionLanguageModel, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(model, max_tokens=20)

    def refused(self: Captured, compute: Replay) -> Replay:
        compute()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Captured, "__call__", refused)
    assert answers(model, max_tokens=20) == expected
    assert not model.graphs.allowed


def test_a_chat(model: VisionLanguageModel, captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk() -> list[str]:
        chat, sampling = Chat(model), SamplingParams(max_tokens=30, temperature=1.0, seed=5)
        return ["".join(chat.say(text, sampling=sampling)) for text in ("Hello", "And then?")]

    replayed = talk()
    assert captured.graphs >= 2  # one a turn
    monkeypatch.setattr(steps, "_EAGER", 10**6)
    assert talk() == replayed
