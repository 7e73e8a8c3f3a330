"""Qwen's chat templates in training and in prompts: thoughts before answers, and answers at once."""

from __future__ import annotations

from typing import Any

import pytest
import qwen
from data_builders import make_byte_tokenizer

from mmtune.common.errors import UserError
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import ModelInputs, encode, encode_text
from mmtune.data.rendering.templates import TEMPLATES, Rendered, get_template
from mmtune.data.survey import survey
from mmtune.interfaces import Turn

NO_THOUGHT = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"
TALKS = [
    ("Hi", "Hello"),
    ("Hi", "Hello", "Bye", "See you"),
    ("2 + 2?", THOUGHT + "4"),
    ("2 + 2?", THOUGHT + "4", "And 3 + 3?", "6"),
    ("Hi", "Hello", "2 + 2?", THOUGHT + "4"),
]


def talk(*texts: str, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Conversation((*([] if system is None else [Turn("system", system)]), *turns), (), "rows.jsonl", 4)


def tokenizer(template: str) -> Any:
    made = make_byte_tokenizer()
    made.chat_template = template
    return made


def learnt(template: str, conversation: Conversation) -> list[str]:
    rendered = get_template("tokenizer", tokenizer(template)).render(conversation)
    return [rendered.text[start:end] for start, end in rendered.answers]


@pytest.mark.parametrize(
    ("template", "thinking", "at_once", "with_thought"),
    [
        (qwen.QWEN2, "never", "assistant\n", None),
        (qwen.QWEN3, "optional", "assistant\n" + NO_THOUGHT, "assistant\n"),
        (qwen.OPENED, "optional", "assistant\n" + NO_THOUGHT, "assistant\n<think>\n"),
        (qwen.ALWAYS, "always", "assistant\n<think>\n", "assistant\n<think>\n"),
    ],
)
def test_prompts(template: str, thinking: str, at_once: str, with_thought: str | None) -> None:
    own = get_template("tokenizer", tokenizer(template))
    assert own.thinking == thinking
    assert own.prompt([Turn("user", "Hi")]).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>" + at_once)
    if with_thought is None:
        with pytest.raises(UserError, match="knows no thoughts before an answer"):
            own.prompt([Turn("user", "Hi")], thinking=True)
    else:
        assert own.prompt([Turn("user", "Hi")], thinking=True).endswith("<|im_start|>" + with_thought)


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_own_templates_have_none(name: str) -> None:
    assert TEMPLATES[name].thinking == "never"


def test_qwen2_in_full() -> None:
    rendered = get_template("tokenizer", tokenizer(qwen.QWEN2)).render(talk("Hi", "Hello", "Bye", "See you"))
    assert rendered.text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>\n"
    )
    assert learnt(qwen.QWEN2, talk("Hi", "Hello", "Bye", "See you")) == ["Hello<|im_end|>", "See you<|im_end|>"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TALKS[0], "Hello<|im_end|>"),  # the empty thought is the prompt's
        (TALKS[2], THOUGHT + "4<|im_end|>"),
        (("2 + 2?", "<think>Two and two.</think>4"), THOUGHT + "4<|im_end|>"),  # as the template writes it
    ],
)
def test_what_is_learnt_of_an_answer(said: tuple[str, ...], expected: str) -> None:
    assert learnt(qwen.QWEN3, talk(*said)) == [expected]


def test_earlier_turns_are_written_without_thoughts_and_not_learnt_then() -> None:
    rendered = get_template("tokenizer", tokenizer(qwen.QWEN3)).render(talk(*TALKS[3], system="Be brief"))
    assert rendered.text == (
        "<|im_start|>system\nBe brief<|im_end|>\n"
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        f"<|im_start|>user\nAnd 3 + 3?<|im_end|>\n<|im_start|>assistant\n{NO_THOUGHT}6<|im_end|>\n"
    )
    assert [rendered.text[start:end] for start, end in rendered.answers] == ["6<|im_end|>"]


@pytest.mark.parametrize("said", TALKS)
@pytest.mark.parametrize("template", [qwen.QWEN2, qwen.QWEN3, qwen.OPENED])
@pytest.mark.parametrize("real", [False, True], ids=["bytes", "qwen"])
def test_what_is_learnt_follows_exactly_what_is_asked(said: tuple[str, ...], template: str, real: bool) -> None:
    """Token by token: the tokens before an answer are those of its prompt, and labels are what follows."""
    given = qwen.real_tokenizer(template) if real else tokenizer(template)
    own = get_template("tokenizer", given)
    conversation = talk(*said)
    example = encode(conversation, ModelInputs(given, own), 1000)
    begins = int(example.supervised.nonzero()[0][-1])
    while begins and example.supervised[begins - 1]:
        begins -= 1
    thinking = own.thinking != "never" and "</think>" in said[-1]
    prompt = own.prompt(conversation.turns[:-1], thinking=thinking)
    assert example.input_ids[:begins].tolist() == encode_text(Rendered(prompt, ()), given)[0].tolist()
    opened = "<think>\n" if prompt.endswith("<think>\n") else ""
    assert opened + given.decode(example.input_ids[begins:]) == f"{said[-1]}<|im_end|>\n"


def test_qwens_own_tokenizer() -> None:
    """Ids as Qwen's published tokenizer gives them; text that its normal form shortens keeps its labels."""
    given = qwen.real_tokenizer(qwen.QWEN3)
    assert given("<|im_start|>assistant\nHello")["input_ids"] == [151644, 77091, 198, 9707]
    conversation = talk("Wo\u0308rter?", "Scho\u0308n, ja \U0001f600")
    example = encode(conversation, ModelInputs(given, get_template("tokenizer", given)), 100)
    assert given.decode(example.input_ids[example.supervised]) == "Sch\u00f6n, ja \U0001f600<|im_end|>"


def test_answers_that_are_not_learnt_are_counted(tmp_path: Any) -> None:
    given = tokenizer(qwen.QWEN3)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},'
        ' {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    for template, expected in (("tokenizer", [f"{rows}, row 1: 1 of 2 answers"]), ("chatml", [])):
        found = survey(str(rows), ModelInputs(given, get_template(template, given)), max_length=100)
        assert found.remarks.left_out == expected
        because = "the chat template writes earlier turns otherwise once the conversation goes on" if expected else ""
        left_out = {"count": len(expected), "because": because, "rows": expected}
        assert found.summary()["rows_with_answers_left_out"] == left_out
