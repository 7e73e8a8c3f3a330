"""Thinking before answering: two steps, the answer as it would be without a thought's stop strings and limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import qwen

from mmtune.common.errors import UserError
from mmtune.generation.chat import Chat, check_thinking
from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import prompt_text
from mmtune.generation.request import Request
from mmtune.interfaces import Prompt, SamplingParams, Turn
from mmtune.models.spec import ModelSpec


@pytest.fixture(scope="module")
def thinker(llama: Path) -> VisionLanguageModel:
    """A model with Qwen3's template; of random weights, so it never closes a thought."""
    spec = ModelSpec(str(llama), template="chatml")
    tokenizer = VisionLanguageModel.assemble(spec).tokenizer
    tokenizer.chat_template = qwen.QWEN3
    spec.template = "tokenizer"
    return VisionLanguageModel.assemble(spec, tokenizer=tokenizer).eval()


@dataclass
class Written:
    """A part of a completion that a test writes itself."""

    text: str
    finish_reason: str = "stop"
    written: tuple[int, ...] = (1, 2)
    logprob: float = 0.0


@pytest.mark.parametrize("overrun", ["unparsed", "close"])
def test_the_answer_follows_the_thought_and_begins_with_the_prefix(
    thinker: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, overrun: Any
) -> None:
    asked: list[list[str]] = []
    thoughts = ["<think>\nan <image>?\n</think>", "<think>\nendless", "<think></think>"]

    def write(self: Request, pending: list[Any], limit: int, stop: Sequence[str], sampler: object) -> None:
        asked.append([one.text for one in pending])
        for one, text in zip(pending, thoughts if stop else ["yes", "no", "so"], strict=False):
            one.draft = Written(text, "length" if "endless" in text else "stop")

    monkeypatch.setattr(Request, "_write", write)
    params = SamplingParams(thinking_budget=9, thinking_overrun=overrun)
    prompts = [Prompt.of(f"P{n}:", response_prefix="It is") for n in range(3)]
    found = [one for (one,) in thinker.generate(prompts, params)]
    first, second = asked
    assert [text.endswith("<|im_start|>assistant\n") for text in first] == [True] * 3
    after = [text.rpartition("<|im_start|>assistant\n")[2] for text in second]
    ended = ["<think>\nan image?\n</think>\n\nIt is", "<think></think>\n\nIt is"]
    if overrun == "unparsed":
        assert after == ended
        assert [one.text for one in found] == ["yes", "", "no"]
        assert [one.finish_reason for one in found] == ["stop", "thinking", "stop"]
        assert [one.response for one in found] == [f"{thoughts[0]}\n\nyes", thoughts[1], f"{thoughts[2]}\n\nno"]
    else:
        assert after == [ended[0], "<think>\nendless\n</think>\n\nIt is", ended[1]]
        assert [one.text for one in found] == ["yes", "no", "so"]
        assert found[1].response == "<think>\nendless\n</think>\n\nno"
    assert [one.tokens for one in found] == [4, 2 if overrun == "unparsed" else 4, 4]


def test_a_thought_has_its_own_limit_and_no_stop_strings(
    thinker: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert thinker.thinking == "optional"
    said = thinker.answer(["a", "b"], stop=list("abcdefghijklmnopqrstuvwxyz"), max_tokens=3, thinking_budget=20)
    assert all("</think>" not in text and len(text) > 3 for text in said)
    # a thought that is over is answered as a prompt that holds it is
    monkeypatch.setattr("mmtune.generation.request.THOUGHT_END", said[0][5])
    thought, _, answer = thinker.answer(["a"], response_prefix="So", max_tokens=7, thinking_budget=20)[0].partition(
        "\n\n"
    )
    assert said[0].startswith(thought)
    prompt = prompt_text(thinker, Prompt.of("a"), 0, thinking=True)
    monkeypatch.setattr("mmtune.generation.fitting.prompt_text", lambda *_, **__: f"{prompt}{thought}\n\nSo")
    assert thinker.answer(["a"], max_tokens=7) == [answer]


def test_it_samples_where_it_is_asked_to(thinker: VisionLanguageModel) -> None:
    (said,) = thinker.answer(["a"], thinking_budget=5, max_tokens=2, temperature=0.5)
    assert said
    assert thinker.usage["generated_tokens"] > 0


def test_a_template_without_thoughts_is_refused(text_model: VisionLanguageModel) -> None:
    assert text_model.thinking == "never"
    with pytest.raises(UserError, match="template 'chatml' knows no thoughts before an answer"):
        text_model.answer(["a"], thinking_budget=5)


def test_a_conversation_thinks_too(thinker: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first thought and answer are those of `generate`; later prompts are the template's, without the thought."""
    (endless,) = thinker.answer(["a"], thinking_budget=9)
    thoughtful = SamplingParams(max_tokens=7, thinking_budget=9, thinking_overrun="close")
    chat = Chat(thinker)
    said = "".join(chat.say("a", sampling=thoughtful))
    broken_off, answer = f"{endless}\n</think>\n\n", said.rpartition("</think>\n\n")[2]
    assert said == broken_off + answer
    assert len(answer) > 0
    again = "".join(chat.say("b", sampling=SamplingParams(max_tokens=7)))
    turns = [Turn("user", "a"), Turn("assistant", said), Turn("user", "b")]
    fresh = Chat(thinker)
    fresh.turns = turns[:2]
    assert again == "".join(fresh.say("b", sampling=SamplingParams(max_tokens=7)))
    assert endless not in thinker.template.prompt(turns)

    monkeypatch.setattr("mmtune.generation.request.THOUGHT_END", endless[5])
    monkeypatch.setattr("mmtune.generation.chat.THOUGHT_END", endless[5])
    expected = thinker.answer(["a"], thinking_budget=20, max_tokens=7)
    assert ["".join(Chat(thinker).say("a", sampling=SamplingParams(max_tokens=7, thinking_budget=20)))] == expected
    assert "\n\n" in expected[0]


def test_a_conversation_without_a_way_to_think_says_so(text_model: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match=r"thinking_budget 5: .* the template chatml, which knows no thoughts"):
        check_thinking(text_model, SamplingParams(thinking_budget=5))
    with pytest.raises(UserError, match="thinking_budget -1: give a whole number of at least 0"):
        SamplingParams(thinking_budget=-1)
