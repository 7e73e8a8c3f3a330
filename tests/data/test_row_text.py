"""What rows say is learnt as it is written: indentation, blanks, and what is no text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from data_builders import ASKED, PLAIN, ROWS, SAID, SINGLE, learned, make_byte_tokenizer

from mmtune.data.conversation import Conversation
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import ModelInputs
from mmtune.data.mixture import Mixture
from mmtune.data.rendering.templates import get_template
from mmtune.data.sources.formats import FORMATS
from mmtune.data.survey import survey

WriteLines = Callable[..., str]


@pytest.mark.parametrize("name", SINGLE)
def test_indentation_of_answers_and_questions_stays(name: str, read: Callable[[Any], Conversation]) -> None:
    first = next(known for known in FORMATS if known.name == name)
    question, answer = first.columns
    code = "    y = x + 1\n    return y"
    for begin in (code, "\t" + code, "\n" + code, "  z"):
        conversation = read({question: "    def f(x):\n", answer: begin + " \n</s>\n"})
        assert conversation.turns[1].text == begin
        assert conversation.turns[0].text.startswith("    def f(x):")


@pytest.mark.parametrize("name", ["chatml", "vicuna_v1", "llama_2", "tokenizer"])
def test_indentation_is_learned(name: str, read: Callable[[Any], Conversation], byte_tokenizer: Any) -> None:
    inputs = ModelInputs(byte_tokenizer, get_template(name, byte_tokenizer))
    [only] = learned(read({"prompt": "def f(x):", "completion": "    y = x + 1"}), inputs)
    assert "    y = x + 1" in only


def test_a_template_that_trims_answers_is_told(write_lines: WriteLines) -> None:
    tokenizer = make_byte_tokenizer()
    rows = [{"prompt": "a", "response": answer} for answer in ("    y = 1", "y = 1", "y = 1\n    z")]
    source = write_lines([*rows, {"messages": [ASKED, SAID | {"content": "\tx"}, ASKED, SAID]}])
    for jinja, told in (
        (tokenizer.chat_template, []),
        (tokenizer.chat_template.replace("m['content']", "m['content'] | trim"), ["row 1: 1 of 1", "row 4: 1 of 2"]),
    ):
        tokenizer.chat_template = jinja
        inputs = ModelInputs(tokenizer, get_template("tokenizer", tokenizer))
        found = survey(source, inputs, max_length=100).summary()["rows_with_answers_trimmed"]
        assert found == {"count": len(told), "rows": [f"{source}, {one} answers" for one in told]}
        data = InstructionData(Mixture([source]), inputs=inputs, cache_tokens=False)
        data.setup()
        assert data.record["rows_with_answers_trimmed"] == found


def test_an_input_without_an_instruction_is_the_question(read: Callable[[Any], Conversation]) -> None:
    assert read({"instruction": "", "input": "What?", "output": "That."}).turns == PLAIN


def test_one_space_before_a_completion_is_gpt3s_convention(read: Callable[[Any], Conversation]) -> None:
    assert read({"prompt": "a", "completion": " That."}).turns[1].text == "That."
    assert read({"prompt": "a", "response": " That."}).turns[1].text == " That."


@pytest.mark.parametrize("value", [3, 3.5, True, float("nan"), {"a": 1}])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_no_text_is_named(name: str, value: Any, refused: Callable[[Any], str]) -> None:
    row = json.loads(json.dumps(ROWS[name]))
    for turns in ("conversations", "messages"):
        for turn in row.get(turns, ()):
            turn["value" if turns == "conversations" else "content"] = value
    row = {key: value if isinstance(old, str) else old for key, old in row.items()}
    if name == "self-instruct":
        row["instruction"] = value
    message = refused(row)
    found = "NaN" if value != value else type(value).__name__
    assert f" is {found}, not text" in message or " is null" in message


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_a_blank_question_is_kept_and_a_blank_answer_named(
    blank: str, read: Callable[[Any], Conversation], refused: Callable[[Any], str]
) -> None:
    """Texts to be continued from nothing are published with an empty prompt."""
    assert read({"messages": [ASKED | {"content": blank}, SAID]}).turns[0].text == blank
    assert "the assistant's answer in turn 2 is empty" in refused({"messages": [ASKED, SAID | {"content": blank}]})


def test_two_columns_that_ask_are_not_one_question(
    read: Callable[[Any], Conversation], refused: Callable[[Any], str]
) -> None:
    for row, name in (
        ({"prompt": "Translate", "query": "a", "response": "b"}, "query"),
        ({"instruction": "Translate", "question": "a", "answer": "b"}, "instruction"),
        ({"prompt": "Translate", "instruction": "a", "output": "b"}, "prompt"),
        ({"question": "a", "prompt": "Be short", "answer": "b"}, "prompt"),
        ({"instruction": "a", "context": "c", "output": "b"}, "context"),
    ):
        assert refused(row).startswith(f"has {name!r}, which may be part of the question")
    for row in ({"prompt": "", "query": "a", "response": "b"}, {"query": "a", "response": "b", "completion": " "}):
        assert [turn.text for turn in read(row).turns] == ["a", "b"]
