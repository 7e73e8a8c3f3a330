"""Every format, every way a row can be wrong, and what is said about it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtune.common.errors import RowError, UserError
from mmtune.data.images import open_photo
from mmtune.data.sources import json_files
from mmtune.data.sources.json_files import json_list
from mmtune.data.sources.readers import BadRows, read_conversations, read_rows
from mmtune.interfaces import Turn

WriteLines = Callable[..., str]
SAID = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]


def picture(shade: int = 9) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def said(question: str, answer: str = "That.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


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


# Row numbers and file kinds


def test_row_numbers_are_line_numbers(write_lines: WriteLines) -> None:
    good = {"prompt": "a", "completion": "b"}
    source = write_lines(["", good, "   ", good])
    assert [c.where for c in read_conversations(source)] == [f"{source}, row 2", f"{source}, row 4"]


def test_windows_line_ends_byte_order_mark_and_odd_separators(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b\u0085c", "completion": "ü 🚀"}, {"prompt": "d", "completion": "e"}]
    text = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\r\n"
    for name, body in {"a.jsonl": text, "B.JSONL": text, "c.json": json.dumps(rows)}.items():
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / name).write_bytes(body.encode(encoding))
            first, second = read_conversations(str(tmp_path / name))
            assert [t.text for t in first.turns] == ["a\u2028b\u0085c", "ü 🚀"]
            assert second.row == 2


def test_spreadsheets(tmp_path: Path) -> None:
    file = tmp_path / "rows.CSV"
    text = 'instruction,input,output\r\n"Add, please.","1\n2",3\r\nSay hi.,,"""Hi"", ü"\r\n'
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_bytes(text.encode(encoding))
        assert [(c.row, *(t.text for t in c.turns)) for c in read_conversations(str(file))] == [
            (1, "Add, please.\n1\n2", "3"),
            (2, "Say hi.", '"Hi", ü'),
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,response\na,b\na,b,c\n", "row 2: more cells than the header"),
        (b"prompt,response\na\n", "row 1: 'response' is null"),
        (b"prompt;response\na;b\n", "row 1: columns prompt;response match no known format"),
        (b'prompt,response\n"a,b\n', "not valid CSV: unexpected end of data"),
        (b"prompt,response\n\xe4,b\n", "not valid CSV: .*; save it as UTF-8"),
        (b"prompt,response\n", "holds no rows"),
        (b"", "holds no rows"),
    ],
)
def test_spreadsheets_that_cannot_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    with pytest.raises((UserError, RowError), match=rf"rows\.csv.*{message}"):
        list(read_conversations(str(file)))


def test_utf16_list_as_windows_shells_write_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps([{"prompt": "a", "completion": "ü"}]).encode("utf-16"))
    assert next(read_conversations(str(tmp_path / "a.json"))).turns[1].text == "ü"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv"])
def test_wide_text_of_every_kind_of_file(name: str, encoding: str, tmp_path: Path) -> None:
    rows = [("prompt", "completion"), ("a\u010a", "ü 🚀"), ("b", "c\u0a0d\u2028d")]
    objects = [json.dumps(dict(zip(rows[0], row, strict=True)), ensure_ascii=False) for row in rows[1:]]
    text = {".csv": "\r\n".join(map(",".join, rows)), ".json": f"[{', '.join(objects)}]"}.get(
        Path(name).suffix, "\r\n".join(objects)
    )
    (tmp_path / name).write_bytes(text.encode(encoding))
    if name == "a.csv" and encoding != "utf-16":  # CSV has nothing but the mark to know it by
        with pytest.raises(UserError, match=r"a\.csv.*(UTF-8|match no known format)") as error:
            list(read_conversations(str(tmp_path / name)))
        assert "\n" not in str(error.value)
        return
    read = list(read_conversations(str(tmp_path / name)))
    assert [tuple(turn.text for turn in c.turns) for c in read] == rows[1:]
    assert [c.row for c in read] == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_wide_text_that_is_damaged_is_one_line(name: str, tmp_path: Path) -> None:
    data = ('{"prompt": "a", "completion": "b"}\n' * 3).encode("utf-16")
    (tmp_path / name).write_bytes(data[:42] + b"\x00\xd8" + data[42:])
    with pytest.raises(UserError, match=rf"{name}.*UTF-8") as error:
        list(read_conversations(str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_long_cells_of_spreadsheets(tmp_path: Path) -> None:
    long = "word, " * 100_000 + "end"
    (tmp_path / "rows.csv").write_text(f'prompt,response\n"{long}",b\nc,"{long}"\n')
    first, second = read_conversations(str(tmp_path / "rows.csv"))
    assert (first.turns[0].text, second.turns[1].text) == (long, long)


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lists_wrapped_or_not(wrap: Callable[[Any], Any], indent: int | None, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrap(rows), indent=indent))
    read = list(read_conversations(str(path)))
    assert [c.row for c in read] == [1, 2, 3, 4, 5]
    assert [c.turns[0].text for c in read] == [f"p{i}" for i in range(5)]


def test_json_lines_named_json(write_lines: WriteLines) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3)]
    assert [c.row for c in read_conversations(write_lines(rows, "rows.json"))] == [1, 2, 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    rows=st.lists(JSON, min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 3]),
    escaped=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    chunk=st.sampled_from([1, 2, 7, 64, 2**20]),
    spoil=st.integers(0, 400),
)
def test_lists_read_piece_by_piece_hold_what_json_holds(
    rows: Any, indent: Any, escaped: bool, encoding: str, chunk: int, spoil: int, tmp_path: Path
) -> None:
    """The rows are json's own, and text cut short is always an error of one line."""
    path = tmp_path / "rows.json"
    text = f" \n{json.dumps(rows, indent=indent, ensure_ascii=escaped)}\n "
    with mock.patch.object(json_files, "_CHUNK", chunk):
        write_text(path, text, encoding)
        assert list(json_list(path)) == list(enumerate(rows, 1))
        write_text(path, text.rstrip()[:-1][: spoil + 3], encoding)
        with pytest.raises(UserError) as error:
            list(json_list(path))
    assert "\n" not in str(error.value)


def write_text(path: Path, text: str, encoding: str) -> None:
    # half of a surrogate pair, which only JSON's escapes can write
    path.write_bytes(text.encode(encoding, "replace"))


@pytest.mark.parametrize("chunk", [1, 5, 30, 2**20])
@pytest.mark.parametrize(
    "text", ['[1, {"a": tru}, 2]', '[\n1,\n {"a"\n: 2},\n {"b": nope}]', "[1, 2, 3 4]", '["a", "b"']
)
def test_a_mistake_is_placed_as_json_places_it(text: str, chunk: int, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    place = f"line {whole.value.lineno} column {whole.value.colno}"
    with mock.patch.object(json_files, "_CHUNK", chunk), pytest.raises(UserError) as error:
        list(json_list(tmp_path / "rows.json"))
    # a list that just ends is json's mistake one character later
    assert place in str(error.value) or text == '["a", "b"'


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('[{"prompt": "a", "completion": "b"}, {"prompt": ]', "row 2: not valid JSON"),
        ('[{"prompt": "a", "completion": "b"},]', "row 2: not valid JSON"),
        ('[{"prompt": "a", "completion": "b"}', "row 1: not valid JSON"),
        ('[{"prompt": "a", "completion": "b"}] trailing', "'trailing' follows the end of the list"),
        ('{"prompt": "a",', "not valid JSON"),
        ('"text"', "expected a list of rows, found str"),
        ('{"a": 1, "b": 2}', "found an object with keys a, b"),
        ("[]", "holds no rows"),
        ("", "holds no rows"),
        (" \n", "holds no rows"),
        (
            '[{"prompt": "a", "prompt": "b", "completion": "c"}]',
            "row 1: not valid JSON: the key 'prompt' is given twice",
        ),
    ],
)
def test_malformed_lists(body: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(body)
    with pytest.raises(UserError) as error:
        list(read_conversations(str(path)))
    assert named in str(error.value)
    assert str(path) in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'["\xff\xff\xff"]')
    with pytest.raises(UserError, match="not valid JSON"):
        list(read_conversations(str(path)))


# Bad rows


def bad(kind: str, row: Any, message: str) -> Any:
    return pytest.param(row, message, id=kind)


EMPTY = "the assistant's answer in turn 2 is empty"
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
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


# Photos


def test_photos_are_found_beside_the_file_in_images_and_under_the_root(write_lines: WriteLines, tmp_path: Path) -> None:
    row = {"conversations": said("<image>"), "image": "a.png"}
    source = write_lines([row])
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "images", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(picture())
        root = str(elsewhere) if folder == elsewhere else None
        [conversation] = read_conversations(source, image_root=root)
        assert conversation.images == (folder / "a.png",)
    with pytest.raises(UserError, match="no such folder"):
        list(read_conversations(source, image_root=str(tmp_path / "nowhere")))


def test_photos_without_marks_come_before_the_question_except_in_llava_rows(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    parts = [{"type": "text", "text": "See "}, {"type": "image", "path": "b.png"}]
    rows = [
        {"prompt": "What?", "completion": "That.", "image": "a.png"},
        {"messages": MESSAGES, "images": ["a.png", "b.png"]},
        {"instruction": "What?", "output": "That.", "image": "a.png", "images": []},
        {"messages": [{"role": "user", "content": parts}, MESSAGES[1]]},
    ]  # fmt: skip
    read = list(read_conversations(write_lines(rows)))
    assert [c.turns[0].text for c in read] == [
        "<image>\nWhat?",
        "<image>\n<image>\na",
        "<image>\nWhat?",
        "See <image>",
    ]
    assert [[p.name for p in c.images if isinstance(p, Path)] for c in read] == [
        ["a.png"], ["a.png", "b.png"], ["a.png"], ["b.png"],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "truncated", "not a picture", "folder"])
def test_photos_that_do_not_decode_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "not a picture":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(RowError) as error:
        open_photo(path, "rows.jsonl, row 7")
    assert str(error.value).startswith(f"rows.jsonl, row 7: the photo {path} ")
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]),
    cut=st.integers(0, 800),
    spoil=st.lists(st.tuples(st.integers(8, 120), st.integers(0, 255)), max_size=3),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_photos_decode_or_are_row_errors(kind: str, cut: int, spoil: list[tuple[int, int]]) -> None:
    stream = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(stream, kind)
    data = bytearray(stream.getvalue())
    for at, value in spoil:
        data[at % len(data)] = value
    with contextlib.suppress(RowError):  # and nothing else
        assert open_photo(bytes(data[: len(data) - cut % len(data)]), "here").mode == "RGB"


def test_parquet_rows_with_photos_of_every_shape(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(picture(2))
    table = pa.table(
        {
            "conversations": [said("<image>\nWhat?")] * 2 + [said("What?")],
            "image": pa.array([{"bytes": picture(1), "path": "x.png"}, {"bytes": None, "path": "b.png"}, None]),
        }
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    first, second, third = read_conversations(str(path))
    assert first.images == (picture(1),)
    assert second.images == (tmp_path / "b.png",)
    assert third.images == ()
    assert third.where == f"{path}, row 3"


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_conversations(str(path)))


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


def test_lists_of_photos_of_hub_sets_stay_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

    stream = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(stream, "PNG")
    photo = {"bytes": stream.getvalue(), "path": None}
    turns = [{"role": "user", "content": "<image>\n<image>\nSame?"}, {"role": "assistant", "content": "Yes."}]
    rows = datasets.Dataset.from_list([{"messages": turns, "images": [photo, photo]}])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    [conversation] = read_conversations("owner/name")
    assert conversation.images == (photo["bytes"],) * 2


def test_photos_deep_in_hub_rows_stay_encoded_and_null_structs_mean_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

    photo = {"type": "image", "image": {"bytes": picture(), "path": "x.png"}, "index": None}
    question = {"type": "text", "text": "?", "image": None}
    asked = {"role": "user", "content": [photo, question]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "weight": 1.0}
    call = {"function": {"name": "f", "arguments": None}}
    rows = [
        {"messages": [asked, said | {"tool_calls": [call]}], "tools": [call], "history": None},
        {"messages": [asked, said], "tools": [{"function": {"name": None}}]},
    ]
    dataset = datasets.Dataset.from_list(rows)
    turn = dataset.features["messages"].feature
    part = turn["content"].feature | {"image": datasets.Image()}
    dataset = dataset.cast_column("messages", datasets.List(turn | {"content": datasets.List(part)}))
    assert isinstance(dataset[1]["messages"][0]["content"][0]["image"], Image.Image)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    bad_rows = BadRows("skip")
    [conversation] = read_conversations("owner/name", bad_rows=bad_rows)
    assert conversation.images == (picture(),)
    assert [turn.text for turn in conversation.turns] == ["<image>?", "Yes."]
    assert "row 1: has 'tools'" in bad_rows.skipped[0]
    assert bad_rows.unread == {}


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


def test_photos_are_seen_as_people_see_them(tmp_path: Path) -> None:
    upright = Image.new("RGB", (8, 4), "red")
    upright.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, as telephones write them
    upright.save(tmp_path / "turned.png", exif=exif)
    turned = open_photo(tmp_path / "turned.png", "")
    assert turned.size == (4, 8)
    assert turned.getpixel((0, 0)) == (0, 0, 255)
    assert turned.getpixel((0, 7)) == (255, 0, 0)
    deep = np.array([[0, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert [open_photo(tmp_path / "deep.png", "").getpixel((x, 0)) for x in range(3)] == [
        (v,) * 3 for v in (0, 127, 255)
    ]
