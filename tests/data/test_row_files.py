"""Files of rows: row numbers, encodings, spreadsheets, and JSON lists read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtune.common.errors import RowError, UserError
from mmtune.data.sources import json_files
from mmtune.data.sources.json_files import json_list
from mmtune.data.sources.readers import read_conversations

WriteLines = Callable[..., str]


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
