"""Columns and keys beside the text: each is honoured down to the labels, or a bad row that names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qwen
from data_builders import (
    ASKED,
    FROM_ASKED,
    FROM_SAID,
    PLAIN,
    ROWS,
    SAID,
    SINGLE,
    learned,
    make_byte_tokenizer,
)

from mmtune.data.conversation import Conversation, RowError
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import ModelInputs, encode
from mmtune.data.mixture import Mixture
from mmtune.data.rendering.templates import TEMPLATES, get_template
from mmtune.data.sources import columns
from mmtune.data.sources.columns import Meaning
from mmtune.data.sources.formats import FORMATS
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.data.survey import survey
from mmtune.interfaces import Turn

WriteLines = Callable[..., str]


def test_the_rows_here_are_of_every_format() -> None:
    assert [known.name for known in FORMATS] == list(ROWS)


# What no row may have


def names(meanings: Sequence[Meaning]) -> Iterator[str]:
    yield from (name for meaning in meanings for name in meaning.names)


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_every_refused_column_is_named_in_every_format(format_: Any, refused: Callable[[Any], str]) -> None:
    row = ROWS[format_.name]
    some = [name for name in names(format_.refused) if name not in format_.known]
    assert {"chosen", "tools", "label", "videos", "objects"} <= set(some)
    for name in some:
        for value in (False, "a", [{"type": "x"}], {"a": 0}, 1):
            said = refused(row | {name: value})
            # with a second question the row may be of either format
            assert said.startswith((f"has {name!r}, which ", f"has {format_.columns[0]!r}, which may be part of the"))


def test_sets_that_are_not_for_this_are_named(refused: Callable[[Any], str]) -> None:
    for row in (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]},
        {"messages": [ASKED, SAID], "rejected_response": "c"},
        {"conversations": [FROM_ASKED], "chosen": FROM_SAID, "rejected": FROM_SAID},
        {"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [SAID]},
        {"prompt": "a", "completion": "b", "label": False},
        {"instruction": "a", "output": "b", "kto_tag": True},
    ):
        assert refused(row).endswith(": a preference set")
    assert "instance 1: has 'tools'" in refused({"instruction": "a", "instances": [{"output": "b", "tools": "c"}]})


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_null_and_empty_mean_absent_in_every_column(
    format_: Any, read: Callable[[Any], Conversation], write_lines: WriteLines
) -> None:
    """As Arrow fills them: a struct of nulls, a list of such."""
    row = ROWS[format_.name]
    extra = {*names(format_.refused), *names(format_.reads)} - set(format_.columns)
    for empty in (None, "", [], {}, [None], {"a": None}, [{"a": {"b": None}}], float("nan"), "[]", " "):
        some = extra - ({"input"} if empty == "[]" else set())  # which may be what an instruction is about
        conversation = read(row | dict.fromkeys(some, empty))
        assert conversation.turns == PLAIN
        assert conversation.images == ()


@pytest.mark.parametrize("column", ["images", "tools", "videos"])
@pytest.mark.parametrize("depth", [2, 3, 200])
def test_lists_in_lists_are_not_absent_however_empty(column: str, depth: int, refused: Callable[[Any], str]) -> None:
    nested: Any = []
    for _ in range(depth - 1):
        nested = [nested]
    message = refused(ROWS["prompt/response"] | {column: [nested]})
    assert "an image is list" in message if column == "images" else repr(column) in message


@pytest.mark.parametrize("key", [*names(columns.REFUSED_KEYS)])
def test_every_refused_key_of_a_turn_is_named(key: str, refused: Callable[[Any], str]) -> None:
    for value in ("a", [{"id": "1"}], {"name": "f"}, 0):
        assert f"turn 2 of 'messages': has {key!r}, which " in refused({"messages": [ASKED, SAID | {key: value}]})
    call = {"role": "assistant", "content": None, key: "a"}
    assert f"turn 2 of 'messages': has {key!r}, which " in refused({"messages": [ASKED, call]})


def test_null_keys_of_a_turn_mean_absent(read: Callable[[Any], Conversation]) -> None:
    some = [*names(columns.REFUSED_KEYS), *columns.WEIGHT.names, *columns.THOUGHT.names]
    for empty in (None, [], [{"function": {"name": None}}]):
        assert read({"messages": [turn | dict.fromkeys(some, empty) for turn in (ASKED, SAID)]}).turns == PLAIN


@pytest.mark.parametrize("role", columns.REFUSED_ROLES.names)
def test_speakers_of_tool_calls_are_named(role: str, refused: Callable[[Any], str]) -> None:
    turns = [FROM_ASKED, {"from": role, "value": "{}"}, FROM_SAID]
    message = refused({"conversations": turns})
    assert message == (
        f"turn 2 of 'conversations': has the speaker {role!r}, which belongs to tool calls, which are not read"
    )


def test_columns_of_arrow_hold_a_null_for_every_key_that_another_row_has(tmp_path: Path) -> None:
    """`datasets` and pyarrow give all rows all keys."""
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [ASKED, SAID | {"tool_calls": [call], "weight": 1.0}], "tools": [call]},
        {"messages": [ASKED, SAID], "tools": None},
        {"messages": [ASKED, SAID | {"content": None, "weight": 0.0, "name": "x"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    bad = BadRows("skip")
    [only] = read_conversations(str(tmp_path / "rows.parquet"), bad_rows=bad)
    assert only.turns == PLAIN
    assert ["'tools'" in bad.skipped[0], "'name'" in bad.skipped[1], len(bad.skipped)] == [True, True, 2]
    assert bad.unread == {}


# What is honoured


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", columns.SYSTEM.names)
def test_a_system_column_is_the_system_prompt_in_every_format(
    name: str, column: str, read: Callable[[Any], Conversation], text_inputs: ModelInputs
) -> None:
    conversation = read(ROWS[name] | {column: "Be brief."})
    assert conversation.turns == (Turn("system", "Be brief."), *PLAIN)
    text = text_inputs.tokenizer.decode(encode(conversation, text_inputs, 1000).input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?")


def test_two_system_prompts(read: Callable[[Any], Conversation], refused: Callable[[Any], str]) -> None:
    turns = [{"role": "developer", "content": "Be brief."}, ASKED, SAID]
    assert read({"messages": turns, "system": "Be brief."}).system == "Be brief."
    assert "two system prompts that differ" in refused({"messages": turns, "system": "Be long."})
    assert "has 'system' and 'system_prompt', which differ" in refused(
        {"messages": [ASKED, SAID], "system": "a", "system_prompt": "b"}
    )
    assert "'system' is int, not text" in refused({"messages": [ASKED, SAID], "system": 3})


@pytest.mark.parametrize("name", SINGLE)
def test_history_is_earlier_turns_that_are_learned(
    name: str, read: Callable[[Any], Conversation], refused: Callable[[Any], str], text_inputs: ModelInputs
) -> None:
    row = ROWS[name] | {"system": "Be brief."}
    conversation = read(row | {"history": [["Hi", "Hello"], ["Bye", "See you"]]})
    assert [turn.text for turn in conversation.dialogue] == ["Hi", "Hello", "Bye", "See you", "What?", "That."]
    assert learned(conversation, text_inputs) == ["Hello<|im_end|>", "See you<|im_end|>", "That.<|im_end|>"]
    assert "'history' is str, not a list" in refused(row | {"history": "Hi"})
    assert "entry 2 of 'history' is no pair" in refused(row | {"history": [["a", "b"], ["c"]]})
    assert "entry 1 of 'history' is null, not text" in refused(row | {"history": [["a", None]]})


TALK = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]


def talk(dialect: int, extra: dict[int, dict[str, Any]]) -> dict[str, Any]:
    keys = (("from", "value"), ("role", "content"), ("role", "value"))[dialect % 3]
    turns = [dict(zip(keys, turn, strict=True)) | extra.get(i, {}) for i, turn in enumerate(TALK)]
    return {"conversations" if dialect < 3 else "messages": turns}


@pytest.mark.parametrize("dialect", range(6))
@pytest.mark.parametrize("key", columns.WEIGHT.names)
def test_a_turn_of_weight_0_is_context_and_not_learned(
    key: str, dialect: int, read: Callable[[Any], Conversation], text_inputs: ModelInputs
) -> None:
    everything = read(talk(dialect, {}))
    assert learned(everything, text_inputs) == ["b<|im_end|>", "d<|im_end|>", "f<|im_end|>"]
    for no, yes in ((0, 1), (0.0, 1.0), (False, True)):
        conversation = read(talk(dialect, {0: {key: no}, 1: {key: no}, 3: {key: yes}, 5: {key: None}}))
        assert learned(conversation, text_inputs) == ["d<|im_end|>", "f<|im_end|>"]
        ids = encode(conversation, text_inputs, 1000).input_ids
        assert ids.tolist() == encode(everything, text_inputs, 1000).input_ids.tolist()


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"] + ["tokenizer"])
def test_weights_hold_in_every_template(name: str, read: Callable[[Any], Conversation], byte_tokenizer: Any) -> None:
    inputs = ModelInputs(byte_tokenizer, get_template(name, byte_tokenizer))
    [only] = learned(read(talk(0, {1: {"weight": 0}, 5: {"weight": 0}})), inputs)
    assert only.strip().startswith("d")


def test_weights_that_mean_nothing_here(refused: Callable[[Any], str]) -> None:
    for value in (0.5, 2, -1, "0"):
        assert f"turn 2 of 'messages': has 'weight' {value!r}; only 0 and 1" in refused(talk(4, {1: {"weight": value}}))
    assert "has 'train' True, and is the user's" in refused(talk(4, {2: {"train": True}}))
    assert "has 'weight' and 'train', which differ" in refused(talk(4, {1: {"train": True, "weight": 0}}))
    assert "no answer is to be learned" in refused(talk(4, {n: {"loss": False} for n in (1, 3, 5)}))


@pytest.mark.parametrize("key", columns.THOUGHT.names)
def test_a_thought_is_learned_as_the_template_writes_it(
    key: str, read: Callable[[Any], Conversation], refused: Callable[[Any], str], text_inputs: ModelInputs
) -> None:
    row = {"messages": [ASKED, SAID | {key: "Hm, well.\n"}]}
    conversation = read(row)
    for template in (qwen.QWEN3, qwen.OPENED):
        tokenizer = make_byte_tokenizer()
        tokenizer.chat_template = template
        inputs = ModelInputs(tokenizer, get_template("tokenizer", tokenizer))
        [only] = learned(conversation, inputs)
        assert only.removeprefix("<think>\n") == "Hm, well.\n</think>\n\nThat.<|im_end|>"
    with pytest.raises(RowError, match=r"row 1: template 'chatml' knows no thoughts"):
        encode(conversation, text_inputs, 1000)
    assert f"has {key!r}, and is the user's" in refused({"messages": [ASKED | {key: "x"}, SAID]})
    twice = {"role": "assistant", "content": "<think>a</think>b", key: "a"}
    assert "has a thought in its text and another under" in refused({"messages": [ASKED, twice]})
    assert f"{key!r} is int, not text" in refused({"messages": [ASKED, SAID | {key: 3}]})


def test_a_prompt_of_turns_is_context(read: Callable[[Any], Conversation], text_inputs: ModelInputs) -> None:
    """TRL's prompt and completion as lists of messages."""
    conversation = read({"prompt": [{"role": "system", "content": "S"}, *talk(4, {})["messages"], ASKED],
                         "completion": [SAID]})  # fmt: skip
    assert [turn.text for turn in conversation.turns] == ["S", *"abcdef", "What?", "That."]
    assert learned(conversation, text_inputs) == ["That.<|im_end|>"]


@pytest.mark.parametrize("name", ["LLaVA/ShareGPT", "chat messages"])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "S"}]])
def test_a_greeting_before_the_first_question_is_dropped(
    name: str, system: list[Any], read: Callable[[Any], Conversation]
) -> None:
    column = FORMATS[0].columns[0] if name == "LLaVA/ShareGPT" else "messages"
    turns = [*system, {"role": "assistant", "content": "Hello, I am a bot."}, ASKED, SAID]
    for row in ({column: turns}, {column: turns[len(system):], **({"system": "S"} if system else {})}):  # fmt: skip
        conversation = read(row)
        assert conversation.dialogue == PLAIN
        assert conversation.system == ("S" if system else None)
    assert read({"prompt": turns[:-1], "completion": [SAID]}).dialogue == PLAIN


def test_speakers_and_texts_under_either_name(
    read: Callable[[Any], Conversation], refused: Callable[[Any], str]
) -> None:
    for column in ("conversations", "messages"):
        for turns in ([FROM_ASKED, FROM_SAID], [ASKED, SAID], [FROM_ASKED, SAID],
                      [FROM_ASKED | ASKED, {"from": None, "value": None} | SAID]):  # fmt: skip
            assert read({column: turns}).turns == PLAIN
        assert "has 'from' and 'role', which differ" in refused({column: [FROM_SAID | ASKED, SAID]})
        assert "has 'value' and 'content', which differ" in refused({column: [FROM_ASKED | {"content": "x"}, SAID]})


# What nobody knows


def test_columns_and_keys_that_are_not_read_are_counted_once_a_row(write_lines: WriteLines) -> None:
    part = {"type": "text", "text": "What?", "cache": "x"}
    turns = [{"role": "user", "content": [part, part | {"text": "?"}], "lang": "en"}, SAID | {"lang": "en"}]
    row = {"messages": turns, "id": 0, "source": "web", "empty": None}
    source = write_lines([row, row | {"source": ""}, ROWS["Alpaca"], ROWS["Alpaca"] | {"chosen": "x", "other": 1}])
    bad = BadRows("skip")
    assert len(list(read_conversations(source, bad_rows=bad))) == 3
    assert bad.unread == {
        source: {"id": 2, "source": 1, "messages[].lang": 2, "messages[].content[].cache": 2},
    }
    some = [{"input": "", "output": "b", "constraints": "none"}] * 2
    source = write_lines([{"instruction": "a", "instances": some}])
    bad = BadRows()
    assert len(list(read_conversations(source, bad_rows=bad))) == 2
    assert bad.unread == {source: {"instances[].constraints": 1}}


def test_what_is_not_read_is_named_when_training_reads_it_and_in_its_record(
    write_lines: WriteLines, text_inputs: ModelInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROWS["Alpaca"] | {"id": n, "lang": "en" if n else None} for n in range(3)]
    source = write_lines(rows)
    data = InstructionData(Mixture([source], total=2), inputs=text_inputs)
    data.setup()
    assert capsys.readouterr().err == f"{source}: not read: 'id' (3 rows), 'lang' (2 rows)\n"
    assert data.record["columns_not_read"] == {source: {"id": 3, "lang": 2}}
    found = survey(source, text_inputs, max_length=100)
    assert found.summary()["columns_not_read"] == {"id": 3, "lang": 2}


# The documentation


def test_the_tables_of_the_documentation_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    said = {(tuple(re.findall(r"`([^`]+)`", names)), text.strip()) for _, names, text, *_ in cells}
    honored = (columns.SYSTEM, columns.HISTORY, columns.IMAGES, columns.INPUT, columns.WEIGHT, columns.THOUGHT)
    refused = (*columns.REFUSED_COLUMNS, *columns.REFUSED_PARTS, *columns.REFUSED_KEYS, columns.REFUSED_ROLES)
    for meaning in (*honored, *refused):
        assert (meaning.names, meaning.text) in said
