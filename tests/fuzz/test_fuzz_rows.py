"""Damaged files of training rows: each row is used as it stands there, or refused by file and row."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_cases import Cases, numbered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ODD, altered, damaged, written
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.data.mixture import Mixture
from mmtune.data.sources.columns import is_absent
from mmtune.data.sources.readers import BadRows, read_conversations

SAID = [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "It is 4."}]
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
PARTS = [
    {"role": "user", "content": [{"type": "image", "path": "photo.png"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
]
SEEN = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A square."}]
ROWS: list[dict[str, Any]] = [
    {"id": 1, "conversations": SAID},
    {"id": 2, "conversations": SEEN, "image": "photo.png", "system": "Be kind."},
    {"messages": MESSAGES},
    {"messages": PARTS},
    {"instruction": "Add.", "instances": [{"input": "1 + 1", "output": "2"}, {"input": "2 + 2", "output": "4"}]},
    {"instruction": "Add.", "input": "1 + 1", "output": "It is 2."},
    {"prompt": "What is 2 + 2?", "completion": " 4.</s>"},
    {"prompt": "What is this?", "response": "A square.", "images": ["photo.png"]},
    {"question": "What is 2 + 2?", "answer": "4"},
]
NO_FILES = ["~nobody-of-this-name/x", "\0.jsonl", "package:__main__/x", "package:mmtune/../x.jsonl", "cache:", ".", "",
            "x" * 300, "owner/" + "n" * 300, "\ud800.jsonl"]  # fmt: skip
# what must be text, for a row to be used at all
REQUIRED: list[tuple[int, tuple[Any, ...]]] = [
    (0, ("conversations",)),
    (0, ("conversations", 0, "value")),
    (0, ("conversations", 1, "value")),
    (0, ("conversations", 0, "from")),
    (2, ("messages",)),
    (2, ("messages", 0, "content")),
    (2, ("messages", 1, "content")),
    (2, ("messages", 1, "role")),
    (3, ("messages", 0, "content", 1, "text")),
    (4, ("instruction",)),
    (5, ("instruction",)),
    (5, ("output",)),
    (6, ("prompt",)),
    (6, ("completion",)),
    (7, ("prompt",)),
    (7, ("response",)),
    (7, ("images", 0)),
    (8, ("question",)),
    (8, ("answer",)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), (200, 30, 30)).save(tmp_path / "photo.png")
    return tmp_path


@pytest.fixture(scope="module")
def real_rows(request: pytest.FixtureRequest) -> list[bytes]:
    """Files of real rows, as far as they are there: the beginnings of each."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    files = sorted(folder.glob("text/*.jsonl")) + sorted(folder.glob("visual/*.jsonl"))
    return [b"".join(file.read_bytes().splitlines(keepends=True)[:12]) for file in files]


def read(file: Path | str) -> tuple[list[Any], list[str]]:
    """Conversations, and what is said of the rows left out."""
    bad = BadRows("skip")
    return list(read_conversations(str(file), bad_rows=bad)), bad.skipped


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


def check(cases: Cases, case: str, file: Path, rows: dict[int, Any] | None = None) -> None:
    """Read a file. Rows that are used say what stands in them; rows that are not are reported with their number."""
    outcome = cases.run(case, lambda: read(file), names=[file])
    if not isinstance(outcome, tuple):
        return
    used, skipped = outcome
    for message in skipped:
        if not message.startswith(f"{file}, row ") or len(message) > 2000:
            cases.fault(f"row left out: {message.removeprefix(str(file))[:50]}", case, message[:300])
    if rows is None:
        return
    reported = {int(message.removeprefix(f"{file}, row ").split(":")[0]) for message in skipped}
    if lost := rows.keys() - reported - {conversation.row for conversation in used}:
        cases.fault("rows neither used nor reported", case, str(sorted(lost)))
    for conversation in used:
        said = list(texts(rows[conversation.row]))
        # the parts of a message are put together, without what kinds they are
        there = "\n".join([*said, "".join(text for text in said if text not in ("text", "image"))])
        for turn in conversation.turns:
            if any(line.strip() not in there for line in turn.text.replace("<image>", "").split("\n")):
                cases.fault("a turn that is not in its row", case, f"{turn} in {rows[conversation.row]}")


def json_lines(data: bytes) -> dict[int, Any]:
    """The rows of JSON Lines by line number, read on their own; None for one that is not JSON."""
    found = {}
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            try:
                found[number] = json.loads(line)
            except (ValueError, RecursionError):
                found[number] = None
    return found


@numbered(120, 2500)
def test_lines_with_damaged_bytes(numbers: range, cases: Cases, folder: Path, real_rows: list[bytes]) -> None:
    whole = [b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), *real_rows]
    file = folder / "rows.jsonl"
    for number in numbers:
        random_ = random.Random(f"lines {number}")
        data = damaged(random_.choice(whole), random_)
        file.write_bytes(data)
        check(cases, f"lines {number}", file, json_lines(data))


@numbered(120, 2500)
def test_lines_with_altered_values(numbers: range, cases: Cases, folder: Path) -> None:
    file = folder / "rows.jsonl"
    for number in numbers:
        random_ = random.Random(f"values {number}")
        rows = [altered(row, random_) for row in random_.sample(ROWS, 3)]
        data = b"\n".join(written(row, random_) for row in rows)
        file.write_bytes(data)
        check(cases, f"values {number}: {data[:300]!r}", file, json_lines(data))


@numbered(60, 1500)
def test_lists_of_rows(numbers: range, cases: Cases, folder: Path) -> None:
    file = folder / "rows.json"
    for number in numbers:
        random_ = random.Random(f"list {number}")
        rows: Any = random_.sample(ROWS, 4)
        rows = {"version": 1, "data": rows} if random_.random() < 0.3 else rows
        data = written(altered(rows, random_), random_)
        file.write_bytes(damaged(data, random_) if random_.random() < 0.5 else data)
        check(cases, f"list {number}", file)


@pytest.mark.parametrize(("row", "path"), REQUIRED, ids=[f"{row} {'.'.join(map(str, p))}" for row, p in REQUIRED])
def test_a_row_whose_required_field_is_damaged_is_refused(
    row: int, path: tuple[Any, ...], cases: Cases, folder: Path
) -> None:
    file = folder / "rows.jsonl"
    for odd in (value for value in ODD if not isinstance(value, str) or value.startswith("@")):
        changed = json.loads(json.dumps(ROWS[row]))
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        if path[-1] == "content" and odd == []:
            continue  # no parts at all are an empty text
        if path[0] == "images" and (is_absent(odd) or odd == "@nan"):
            continue  # null and empty mean that there is no photo
        holder[path[-1]] = odd
        file.write_bytes(written(changed, random.Random(0), plain=True))
        case = f"{path} is {str(odd)[:50]!r}"
        outcome = cases.run(case, lambda: list(read_conversations(str(file))), names=[f"{file}, row 1"])
        if not isinstance(outcome, UserError):
            cases.fault("silently used", case, str(outcome)[:300])


@numbered(60, 1000)
def test_damaged_csv(numbers: range, cases: Cases, folder: Path) -> None:
    texts_ = ["plain", 'with "quotes", commas', "two\nlines", "é🚀"]
    stream = io.StringIO()
    csv.writer(stream).writerows(
        [["prompt", "completion", "id"], *([t, f"answer to {t}", n] for n, t in enumerate(texts_))]
    )
    file = folder / "rows.csv"
    for number in numbers:
        random_ = random.Random(f"csv {number}")
        file.write_bytes(damaged(stream.getvalue().encode(), random_))
        check(cases, f"csv {number}: {file.read_bytes()[:300]!r}", file)


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


def tables() -> list[list[dict[str, Any]]]:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    cell = {"bytes": picture.getvalue(), "path": None}
    return [
        [{"conversations": SAID, "image": None}] * 20,
        [{"question": f"What is {n}?", "answer": f"It is {n}.", "image": cell} for n in range(40)],
        [{"instruction": "Add.", "input": str(n), "output": str(n + 1)} for n in range(300)],
    ]


@numbered(60, 1500)
def test_damaged_parquet_files(numbers: range, cases: Cases, folder: Path) -> None:
    whole = [parquet(rows, compression=kind) for rows in tables() for kind in ("none", "snappy", "zstd")]
    file = folder / "rows.parquet"
    for number in numbers:
        random_ = random.Random(f"parquet {number}")
        file.write_bytes(damaged(random_.choice(whole), random_))
        check(cases, f"parquet {number}", file)


@numbered(60, 1000)
def test_parquet_files_with_checksums_are_never_read_as_something_else(
    numbers: range, cases: Cases, folder: Path
) -> None:
    file = folder / "rows.parquet"
    for number in numbers:
        random_ = random.Random(f"checksum {number}")
        rows = random_.choice(tables()[1:])
        content = bytearray(parquet(rows, write_page_checksum=True, compression="none"))
        footer = int.from_bytes(content[-8:-4], "little") + 8
        content[random_.randrange(4, len(content) - footer)] ^= 1 << random_.randrange(8)
        file.write_bytes(content)
        outcome = cases.run(f"checksum {number}", lambda: read(file), names=[file])
        if isinstance(outcome, tuple) and not outcome[1]:
            said = [turn.text for conversation in outcome[0] for turn in conversation.turns]
            known = {text for row in rows for text in texts(row)} | {f"Add.\n{n}" for n in range(300)}
            if any(text.removeprefix("<image>\n") not in known for text in said) or len(outcome[0]) != len(rows):
                cases.fault("damaged rows silently used", f"checksum {number}", str(said)[:300])


@numbered(40, 400)
def test_parquet_columns_of_other_types(numbers: range, cases: Cases, folder: Path) -> None:
    columns: list[pa.Array] = [
        pa.array([1, None]), pa.array([b"\xff", b"a"]), pa.array([float("nan"), 1e308]), pa.array([True, None]),
        pa.array([["a"], None]), pa.array([{"a": 1}, {"a": None}]), pa.array([10**12, 2], pa.timestamp("ns")),
        pa.array([10**18, 2], pa.timestamp("us")), pa.array([10**9, 2], pa.date32()), pa.nulls(2),
        pa.array([1, 2], pa.duration("ns")), pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b"]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), pa.array([b"1234"] * 2, pa.binary(4)),
        pa.array([1, 2], pa.time64("ns")), pa.array([10**9, 2], pa.decimal128(38, 2)), pa.array([1.5, 2], pa.float16()),
    ]  # fmt: skip
    names = ["prompt", "completion", "image", "images", "conversations", "messages", "question", "answer", "system"]
    file = folder / "rows.parquet"
    for number in numbers:
        random_ = random.Random(f"types {number}")
        chosen = {name: random_.choice(columns) for name in random_.sample(names, 4)}
        pq.write_table(pa.table(chosen), file)
        check(cases, f"types {number}: { {name: str(c.type) for name, c in chosen.items()} }", file)


def test_other_kinds_of_files_are_refused_by_name(cases: Cases, folder: Path) -> None:
    table = pa.Table.from_pylist([{"prompt": "a", "completion": "b"}])
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "rows.tsv").write_text("prompt\tcompletion\na\tb\n")
    (folder / "dataset").mkdir()
    (folder / "dataset" / "dataset_info.json").write_text("{}")
    here = ["rows.arrow", "rows.tsv", "dataset", "no.jsonl", "photo.png", "\0", "~nobody-of-this-name/rows.jsonl"]
    for name in [*(str(folder / one) for one in here), *NO_FILES]:
        outcome = cases.run(name[:100], partial(read, name), names=[name])
        if not isinstance(outcome, UserError):
            cases.fault("is no file of rows, and was read", name[:100], "")


@numbered(100, 600)
def test_the_file_of_rows_to_leave_out(numbers: range, cases: Cases, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}", "completion": "b"}) + "\n" for n in range(3))
    )
    file = folder / "leave out.json"
    whole = {"hits": [{"source": str(folder / "rows.jsonl"), "row": 2}], "suite": "s"}
    for number in numbers:
        random_ = random.Random(f"leave out {number}")
        data = written(altered(whole, random_), random_)
        file.write_bytes(damaged(data, random_) if random_.random() < 0.3 else data)
        mixture = Mixture(text=[str(folder / "rows.jsonl")], leave_out=str(file))
        cases.run(
            f"leave out {number}: {data[:200]!r}", partial(mixture.draw, BadRows(), lambda row: row), names=[file]
        )


TEXTS = st.text(max_size=30) | st.sampled_from(["human", "gpt", "user", "assistant", "<image>", "text", "image"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
COLUMNS = ["conversations", "messages", "instruction", "instances", "input", "output", "prompt", "completion", "image"]


@pytest.mark.parametrize("most", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_rows_of_any_values(most: int, cases: Cases, folder: Path) -> None:
    file = folder / "rows.jsonl"

    @settings(max_examples=most, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.dictionaries(st.sampled_from(COLUMNS), VALUES, min_size=1), st.sampled_from(["messages", "conversations"])
    )
    def anything(row: dict[str, Any], column: str) -> None:
        data = json.dumps(row).encode()
        file.write_bytes(data)
        check(cases, data[:300].decode(), file, json_lines(data))

    anything()
