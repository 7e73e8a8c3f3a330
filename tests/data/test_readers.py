"""Every format, every way a row can be wrong, and what is said about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_builders import MESSAGES, picture, said

from mmtune.common.errors import RowError, UserError
from mmtune.data.sources.readers import BadRows, read_conversations, read_rows
from mmtune.interfaces import Turn

WriteLines = Callable[..., str]
SAID = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
PLAIN = (Turn("user", "What?"), Turn("assistant", "That."))
FORMATS = [
    ("LLaVA/ShareGPT", {"conversations": SAID}),
    (
        "LLaVA/ShareGPT",
        {"conversations": [{"from": "gpt", "value": "Hello, I am a bot."}, *SAID], "image": ""},
    ),
    (
        "chat messages",
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]},
    ),
    (
        "chat messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
            ]
        },
    ),
    ("self-instruct", {"instruction": "What?", "instances": [{"input": "", "output": "That."}]}),
    ("Alpaca", {"instruction": "What?", "input": "", "output": "That."}),
    ("Alpaca", {"instruction": "What?", "output": "That.</s>"}),
    ("prompt/completion", {"prompt": "What?\n", "completion": "That.<|endoftext|>"}),
    ("prompt/completion", {"prompt": "What?", "completion": " That.<|endoftext|>\n", "template": "x"}),
    ("prompt/response", {"prompt": "What?", "response": "That."}),
    ("question/answer", {"question": "What?", "answer": "That."}),
]


@pytest.mark.parametrize(("name", "row"), FORMATS)
def test_every_format_becomes_the_same_conversation(name: str, row: Any, write_lines: WriteLines) -> None:
    [reading] = read_rows(write_lines([row]))
    assert reading.format == name
    assert reading.conversation.turns == PLAIN
    assert reading.conversation.images == ()


def test_system_prompts_are_kept(write_lines: WriteLines) -> None:
    rows = [
        {"conversations": SAID, "system": "Be brief."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *SAID]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"},
                      {"role": "assistant", "content": "That."}]},
        {"instruction": "What?", "output": "That.", "system": "Be brief."},
    ]  # fmt: skip
    for conversation in read_conversations(write_lines(rows)):
        assert conversation.system == "Be brief."
        assert conversation.dialogue == PLAIN


def test_inputs_follow_the_instruction_and_each_instance_is_a_conversation(write_lines: WriteLines) -> None:
    row = {
        "instruction": "Add.",
        "instances": [{"input": "1+1", "output": "2"}, {"input": "2+2", "output": "4"}],
    }
    first, second = read_conversations(write_lines([row]))
    assert [t.text for t in first.turns] == ["Add.\n1+1", "2"]
    assert [t.text for t in second.turns] == ["Add.\n2+2", "4"]
    assert first.where == second.where


def test_an_instance_that_cannot_be_used_does_not_take_the_others_with_it(write_lines: WriteLines) -> None:
    instances = [
        {"input": "1", "output": "one"},
        {"input": "2", "output": ""},
        {"input": "3", "output": "three"},
    ]
    bad = BadRows("skip")
    kept = list(read_conversations(write_lines([{"instruction": "Say", "instances": instances}]), bad_rows=bad))
    assert [c.turns[1].text for c in kept] == ["one", "three"]
    assert len(bad.skipped) == 1


# Bad rows


def bad(kind: str, row: Any, message: str) -> Any:
    return pytest.param(row, message, id=kind)


EMPTY = "the assistant's answer in turn 2 is empty"
BAD_ROWS = [
    bad("wrong JSON", '{"prompt": "a", ', "not valid JSON"),
    bad("endless number", '{"prompt": ' + "1" * 5000 + "}", "not valid JSON"),
    bad("list", '[{"prompt": "a", "completion": "b"}]', "is list, not an object"),
    bad("number", "3", "is int, not an object"),
    bad("unknown columns", {"foo": 1, "bar": 2}, "columns foo, bar match no known format"),
    bad("no columns", {}, "columns (none) match no known format"),
    bad("no turns", {"conversations": []}, "the conversation has no turns"),
    bad("system alone",
        {"conversations": [{"from": "system", "value": "x"}]}, "the conversation has no turns"),
    bad("turns not a list", {"conversations": "hello"}, "'conversations' is str, not a list"),
    bad("turn not an object", {"conversations": ["hello"]}, "turn 1 of 'conversations': needs the keys"),
    bad("turn without value",
        {"conversations": [{"from": "human"}]}, "turn 1 of 'conversations': needs the keys"),
    bad("value not text",
        {"conversations": said(None)}, "turn 1 of 'conversations': 'value' is null, not text"),  # type: ignore[arg-type]
    bad("unknown speaker", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown speaker 'alien'"),
    bad("no answer", {"conversations": SAID[:1]}, "ends with the user's turn"),
    bad("two questions", {"conversations": [SAID[0], *SAID]}, "turn 2 is the user's where the assistant's"),
    bad("empty answer", {"conversations": said("What?", "")}, EMPTY),
    bad("blank answer", {"prompt": "a", "completion": " \n<|endoftext|>"}, EMPTY),
    bad("answer not text", {"question": "a", "answer": ["b"]}, "'answer' is list, not text"),
    bad("instruction not text", {"instruction": 3, "output": "b"}, "'instruction' is int, not text"),
    bad("no instances", {"instruction": "a", "instances": []}, "'instances' is empty"),
    bad("instances not a list", {"instruction": "a", "instances": "b"}, "'instances' is not a list"),
    bad("messages not a list", {"messages": {"role": "user"}}, "'messages' is dict, not a list"),
    bad("message without role",
        {"messages": [{"content": "b"}]}, "turn 1 of 'messages': needs the keys 'from' and 'value', or"),
    bad("unknown part", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "has type 'audio'"),
    bad("half a surrogate pair", '{"prompt": "a \\ud83d b", "completion": "c"}', "half of a surrogate pair"),
    bad("mark without photo", {"conversations": said("<image>\nWhat?")}, "1 <image> mark(s) but 0 photo(s)"),
    bad("photo without mark",
        {"conversations": SAID, "image": "good.png"}, "0 <image> mark(s) but 1 photo(s)"),
    bad("two marks",
        {"conversations": said("<image><image>"), "image": "good.png"}, "2 <image> mark(s) but 1"),
    bad("mark in answer",
        {"conversations": said("<image>", "<image>"), "image": "good.png"}, "the assistant's turn"),
    bad("mark in system",
        {"conversations": SAID, "system": "<image>", "image": "good.png"}, "the system's turn"),
    bad("missing photo",
        {"conversations": said("<image>"), "image": "none.png"}, "the photo none.png does not exist"),
    bad("photo in the row",
        {"conversations": said("<image>"), "image": "data:" + "x" * 5000}, "is no data: address"),
    bad("photo not a path",
        {"conversations": said("<image>"), "image": 3}, "an image is int; expected a path"),
    bad("messages photo missing", {"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}, MESSAGES[1]]},
        "1 <image> mark(s) but 0 photo(s)"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_stop_or_are_skipped(row: Any, message: str, write_lines: WriteLines, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(picture())
    good = {"prompt": "a", "completion": "b"}
    source = write_lines([good, row, good])

    with pytest.raises(RowError) as error:
        list(read_conversations(source))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{source}, row 2: ")
    assert "--data.on_bad_row skip" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700

    skipping = BadRows("skip")
    assert [c.row for c in read_conversations(source, bad_rows=skipping)] == [1, 3]
    assert len(skipping.skipped) == 1
    assert skipping.skipped[0].startswith(f"{source}, row 2: ")
    assert message in skipping.skipped[0]


def test_a_file_of_bad_rows_alone_is_not_called_empty(write_lines: WriteLines) -> None:
    skipping = BadRows("skip")
    assert list(read_conversations(write_lines(["{", "}"]), bad_rows=skipping)) == []
    assert len(skipping.skipped) == 2


# Sources


def test_package_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mmtune_test_rows"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "package:mmtune_test_rows/rows.jsonl"
    skipping = BadRows("skip")
    [conversation] = read_conversations(source, bad_rows=skipping)
    assert conversation.where == f"{source}, row 1"
    assert skipping.skipped[0].startswith(f"{source}, row 2: not valid JSON")
    with pytest.raises(UserError, match="holds no other"):
        list(read_conversations("package:mmtune_test_rows/other.jsonl"))
    with pytest.raises(UserError, match="pip install"):
        list(read_conversations("package:mmtune_no_such/rows.jsonl"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "no such file"),
        ("a/b/nowhere.txt", "no such file"),
        ("json", "no such file"),  # `datasets` would read the working folder
        ("./owner/name", "no such file"),
        ("", "is a folder"),
    ],
)
def test_sources_that_are_neither_file_nor_hub_id(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        list(read_conversations(source))
    assert "\n" not in str(error.value)


def test_folders_and_unknown_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("prompt,completion\na,b\n")
    with pytest.raises(UserError, match=r"unknown kind of file; expected \.csv, \.json"):
        list(read_conversations(str(tmp_path / "rows.xlsx")))
    with pytest.raises(UserError, match="is a folder; give the file in it"):
        list(read_conversations(str(tmp_path)))


def test_unknown_hub_id_offline_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("datasets.config", "huggingface_hub.constants"):  # read when they were imported
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    with pytest.raises(UserError) as error:
        list(read_conversations("nobody/nothing-here"))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("nobody/nothing-here: no such file, and the hub data set cannot be loaded")


# Real rows


@pytest.mark.parametrize(
    ("name", "known", "rows"),
    [
        ("text/p3_t0.jsonl", "prompt/completion", 10000),
        ("text/gsm8k_2000.jsonl", "question/answer", 2000),
        ("text/seed_tasks.jsonl", "self-instruct", 175),
        ("text/user_oriented_instructions.jsonl", "self-instruct", 252),
        ("visual/coco_captions_llava.json", "LLaVA/ShareGPT", 1545),
    ],
)
def test_real_files(name: str, known: str, rows: int, shared_data: Path) -> None:
    skipping = BadRows("skip")
    readings = list(read_rows(str(shared_data / name), bad_rows=skipping))
    assert {r.format for r in readings} == {known}
    assert len({r.conversation.row for r in readings}) + len(skipping.skipped) >= rows
    # 3 % of the P3 rows have an empty completion
    assert len(skipping.skipped) <= rows // 25, skipping.skipped[:3]
    assert not any("<|endoftext|>" in t.text for r in readings for t in r.conversation.turns if t.role == "assistant")


def test_a_key_given_twice_and_a_null_are_named(write_lines: WriteLines) -> None:
    source = write_lines(['{"prompt": "a", "prompt": "b", "completion": "c"}', {"prompt": "a", "completion": None}])
    bad_rows = BadRows("skip")
    assert not list(read_conversations(source, bad_rows=bad_rows))
    assert "row 1: not valid JSON: the key 'prompt' is given twice" in bad_rows.skipped[0]
    assert "row 2: 'completion' is null" in bad_rows.skipped[1]
