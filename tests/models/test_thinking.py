"""Thinking before answering: two steps, the answer as it would be without a thought's stop strings and limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import qwen

from mmtune.common.errors import UserError
from mmtune.generation.chat import Chat, Sampling, check_thinking
from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import prompt_texts
from mmtune.generation.thinking import think_first
from mmtune.interfaces import Turn
from mmtune.models.spec import ModelSpec


@pytest.fixture(scope="module")
def thinker(llama: Path) -> VisionLanguageModel:
    """A model with Qwen3's template; of random weights, so it never closes a thought."""
    spec = ModelSpec(str(llama), template="chatml")
    tokenizer = VisionLanguageModel.assemble(spec).tokenizer
    tokenizer.chat_template = qwen.QWEN3
    spec.template = "tokenizer"
    return VisionLanguageModel.assemble(spec, tokenizer=tokenizer).eval()


def test_the_answer_follows_the_thought_and_begins_with_the_primer() -> None:
    asked: list[list[str]] = []

    def think(numbers: Sequence[int], texts: Sequence[str]) -> list[str]:
        asked.append(list(texts))
        return ["<think>\nan <image>?\n</think>", "<think>\nendless", "<think></think>"]

    def answer(numbers: Sequence[int], texts: Sequence[str]) -> list[str]:
        assert list(numbers) == [0, 2]
        asked.append(list(texts))
        return ["yes", "no"]

    said = think_first(["P0:", "P1:", "P2:"], "It is", think=think, answer=answer)
    assert said == ["<think>\nan <image>?\n</think>\n\nyes", "<think>\nendless", "<think></think>\n\nno"]
    assert asked == [
        ["P0:", "P1:", "P2:"],
        ["P0:<think>\nan image?\n</think>\n\nIt is", "P2:<think></think>\n\nIt is"],
    ]


def test_a_thought_has_its_own_limit_and_no_stop_strings(
    thinker: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert thinker.thinking == "optional"
    said = thinker.generate(["a", "b"], stop=list("abcdefghijklmnopqrstuvwxyz"), max_tokens=3, thinking_budget=20)
    assert all("</think>" not in text and len(text) > 3 for text in said)
    # a thought that is over is answered as a prompt that holds it is
    monkeypatch.setattr("mmtune.generation.request.THOUGHT_END", said[0][5])
    monkeypatch.setattr("mmtune.generation.thinking.THOUGHT_END", said[0][5])
    thought, _, answer = thinker.generate(["a"], response_prefix="So", max_tokens=7, thinking_budget=20)[0].partition(
        "\n\n"
    )
    assert said[0].startswith(thought)
    (prompt,) = prompt_texts(thinker, ["a"], [()], thinking=True)
    monkeypatch.setattr("mmtune.generation.fitting.prompt_texts", lambda *_, **__: [f"{prompt}{thought}\n\nSo"])
    assert thinker.generate(["a"], max_tokens=7) == [answer]


def test_it_samples_where_it_is_asked_to(thinker: VisionLanguageModel) -> None:
    (said,) = thinker.generate(["a"], thinking_budget=5, max_tokens=2, do_sample=True, temperature=0.5)
    assert said
    assert thinker.usage["generated_tokens"] > 0


def test_a_template_without_thoughts_is_refused(text_model: VisionLanguageModel) -> None:
    assert text_model.thinking == "never"
    with pytest.raises(UserError, match="template 'chatml' knows no thoughts before an answer"):
        text_model.generate(["a"], thinking_budget=5)


def test_a_conversation_thinks_too(thinker: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first thought and answer are those of `generate`; later prompts are the template's, without the thought."""
    (endless,) = thinker.generate(["a"], thinking_budget=9)
    thoughtful = Sampling(max_tokens=7, thinking_budget=9)
    chat = Chat(thinker)
    said = "".join(chat.say("a", sampling=thoughtful))
    broken_off, answer = f"{endless}\n</think>\n\n", said.rpartition("</think>\n\n")[2]
    assert said == broken_off + answer
    assert len(answer) > 0
    again = "".join(chat.say("b", sampling=Sampling(max_tokens=7)))
    turns = [Turn("user", "a"), Turn("assistant", said), Turn("user", "b")]
    fresh = Chat(thinker)
    fresh.turns = turns[:2]
    assert again == "".join(fresh.say("b", sampling=Sampling(max_tokens=7)))
    assert endless not in thinker.template.prompt(turns)

    monkeypatch.setattr("mmtune.generation.thinking.THOUGHT_END", endless[5])
    monkeypatch.setattr("mmtune.generation.request.THOUGHT_END", endless[5])
    monkeypatch.setattr("mmtune.generation.chat.THOUGHT_END", endless[5])
    expected = thinker.generate(["a"], thinking_budget=20, max_tokens=7)
    assert ["".join(Chat(thinker).say("a", sampling=Sampling(max_tokens=7, thinking_budget=20)))] == expected
    assert "\n\n" in expected[0]


def test_a_conversation_without_a_way_to_think_says_so(text_model: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match=r"thinking_budget 5: .* the template chatml, which knows no thoughts"):
        check_thinking(text_model, Sampling(thinking_budget=5))
    with pytest.raises(UserError, match="give a number from 0"):
        Sampling(thinking_budget=-1)
