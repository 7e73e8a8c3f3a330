"""What fuzzing found, each with the least input that shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.conversation import RowError
from mmtune.data.mixture import Mixture
from mmtune.data.readers import BadRows, read_conversations
from mmtune.errors import UserError
from mmtune.files import locate, read_json

# Rows


def test_a_text_in_parquet_that_is_not_utf8_costs_its_own_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    broken = pa.array([b"a", b"\xb3", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken, "completion": ["1", "2", "3"]}), file)
    bad = BadRows("skip")
    assert [row.turns[0].text for row in read_conversations(str(file), bad_rows=bad)] == ["a", "c"]
    assert [message.split(": ")[:2] for message in bad.skipped] == [[f"{file}, row 2", "cannot be read"]]


def test_a_date_in_parquet_that_python_has_not_costs_its_own_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    dates = pa.array([1, 10**18], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["1", "2"], "at": dates}), file)
    bad = BadRows("skip")
    assert [row.row for row in read_conversations(str(file), bad_rows=bad)] == [1]
    assert len(bad.skipped) == 1


def test_the_checksums_of_a_parquet_file_are_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    table = pa.table({"prompt": ["the question"], "completion": ["the answer"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, write_page_checksum=True, **plain)
    file.write_bytes(file.read_bytes().replace(b"the answer", b"the bnswer"))
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_conversations(str(file)))


@pytest.mark.parametrize(
    "row", [{"x" * 10_000: 1}, {"messages": [{"role": "x" * 10_000, "content": ""}]}, {"prompt": "a", "completion": "b",
            "images": "x" * 10_000}, {"messages": [{"role": "user", "content": [{"type": "x" * 10_000}]}]}]
)  # fmt: skip
def test_what_is_said_of_a_row_quotes_little_of_it(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(RowError) as error:
        list(read_conversations(str(tmp_path / "rows.jsonl")))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "hit", [{"source": 1, "row": 2}, {"source": ["a"], "row": 2}, {"source": "a", "row": 1e999}, {"source": "a"}, [], 3]
)
def test_hits_that_name_no_row_are_refused(hit: Any, tmp_path: Path) -> None:
    (tmp_path / "hits.json").write_text(json.dumps({"hits": [hit]}))
    with pytest.raises(UserError, match="needs 'hits', a list of objects with 'source' and 'row'"):
        Mixture(["rows.jsonl"], leave_out=str(tmp_path / "hits.json")).draw(BadRows())


# Files


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("~nobody-of-this-name/x", "no such home folder"),
        ("x" * 300, "File name too long"),
        ("package:__main__/x", "write package:NAME/file"),
    ],
)
def test_references_that_the_system_cannot_follow(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(reference)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": "\0"}'], ids=["deep", "long number", "NUL"])
def test_json_that_python_gives_up_on(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
