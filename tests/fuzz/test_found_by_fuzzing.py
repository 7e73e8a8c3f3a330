"""What fuzzing found, each with the least input that shows it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from mmtune.common.errors import RowError, UserError
from mmtune.common.files import locate, read_json
from mmtune.data.images import load_image
from mmtune.data.mixture import Mixture
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.models.spec import ImageFit, VisionOptions
from mmtune.models.vision import TowerShape, preprocessing

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
        Mixture(["rows.jsonl"], leave_out=str(tmp_path / "hits.json")).draw(BadRows(), lambda row: row)


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


# Photos


def test_a_photo_of_100000_by_1_pixels_is_padded_without_a_square_of_30_gb() -> None:
    photo = Image.new("RGB", (100_000, 1), (255, 0, 0))
    shape = TowerShape(num_tokens=1, width=1, size=28, mean=(0.0, 0.0, 1.0), std=(1.0, 1.0, 1.0))
    pad, crop = (preprocessing(VisionOptions(fit=fit), shape)(photo) for fit in ("pad", "crop"))
    assert [int((row[0] > 0.5).sum()) for row in pad.transpose(0, 1)] == [0] * 13 + [28] + [0] * 14
    assert torch.equal(crop[0], torch.ones(28, 28))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (9000, 40)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_very_long_photos_become_what_others_do(
    size: tuple[int, int], fit: ImageFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done with photos too long to be padded first differs little from padding first."""
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    shape = TowerShape(num_tokens=1, width=1, size=56, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    preprocess = preprocessing(VisionOptions(fit=fit), shape)
    usual = preprocess(photo)
    monkeypatch.setattr("mmtune.models.vision.MOST_PIXELS", 1)
    assert (preprocess(photo) - usual).abs().mean() < 0.02


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.eps")
    with pytest.raises(RowError, match="of the format EPS, which is not read; save it as PNG"):
        load_image(tmp_path / "photo.eps", "row 1")


def test_whatever_pillow_raises_is_said_of_the_row() -> None:
    with pytest.raises(RowError, match="row 1: the photo of 148 bytes cannot be decoded: Truncated File Read"):
        load_image(b"BM" + b"\x11" * 146, "row 1")


# Task files


def task_file(folder: Path, **changes: Any) -> Path:
    columns = {"question": ["a"], "label": [0], "choices": [["one", "two"]]}
    rows = folder / "hub" / "me" / "mine" / "default" / "test.parquet"
    rows.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), rows)
    task = {"name": "mine", "version": 1, "modality": "language", "dataset": {"path": "me/mine", "split": "test"},
            "prompt": "{{ question }}", "target": "{{ label | letter }}", "answer": "letter", "options": "choices",
            "max_tokens": 8, "metrics": ["accuracy"]}  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(task | changes))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{{ 9 ** (9 ** 9) }}", r"\*\* is not for templates"),
        ("{{ 'a' * 100000000000 }}", r"\* makes more than 1,000,000"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
    ],
)
def test_a_template_cannot_ask_for_hours_or_all_memory(prompt: str, message: str, tmp_path: Path) -> None:
    file = task_file(tmp_path, prompt=prompt)

    def ask() -> None:
        task = load_suite(file).tasks[0]
        Renderer(task, "blind").question(0, load_rows(task, tmp_path, limit=None).rows[0][1])

    with pytest.raises(UserError, match=message) as error:
        ask()
    assert str(error.value).startswith(f"{file}: prompt: ")


@pytest.mark.parametrize("expression", [" ", "label) or (label", "label == 0 }} {{ label"])
def test_an_expression_must_be_one_without_parentheses_around_it(expression: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: filter: not a jinja2 template"):
        load_suite(task_file(tmp_path, filter=expression))


def test_an_expression_with_a_number_that_is_infinite_fails_on_its_row(tmp_path: Path) -> None:
    task = load_suite(task_file(tmp_path, filter="label < 1e999")).tasks[0]
    with pytest.raises(UserError, match="filter: row 0: name 'inf' is not defined"):
        load_rows(task, tmp_path, limit=None, keep=Renderer(task, "blind").keeps)


def test_a_split_whose_name_no_file_can_have_is_missing(tmp_path: Path) -> None:
    task = load_suite(task_file(tmp_path, dataset={"path": "me/mine", "split": "x" * 300})).tasks[0]
    with pytest.raises(UserError, match="no such file, and task mine needs it"):
        load_rows(task, tmp_path, limit=None)


def rows_of_task(folder: Path, table: pa.Table, **options: Any) -> tuple[Any, Path]:
    """The task of `task_file` with other rows, and their file."""
    task = load_suite(task_file(folder)).tasks[0]
    file = folder / "hub" / "me" / "mine" / "default" / "test.parquet"
    pq.write_table(table, file, **options)
    return task, file


@pytest.mark.parametrize(
    ("was", "now"), [(b"the name", b"the \xffame"), (b"the text", b"the t\xffxt")], ids=["of a column", "of a row"]
)
def test_texts_of_a_task_that_are_not_utf8_are_refused(was: bytes, now: bytes, tmp_path: Path) -> None:
    table = pa.table({"question": ["the text"], "label": [0], "choices": [["a", "b"]], "the name": [1]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    task, file = rows_of_task(tmp_path, table, **plain)
    file.write_bytes(file.read_bytes().replace(was, now))
    with pytest.raises(UserError, match=r"test\.parquet: (not a readable parquet file|damaged) \('utf-8' codec"):
        load_rows(task, tmp_path, limit=None)


def test_the_checksums_of_a_task_s_rows_are_looked_at(tmp_path: Path) -> None:
    table = pa.table({"question": ["the text"], "label": [0], "choices": [["a", "b"]]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    task, file = rows_of_task(tmp_path, table, write_page_checksum=True, **plain)
    file.write_bytes(file.read_bytes().replace(b"the text", b"the next"))
    with pytest.raises(UserError, match=r"test\.parquet: damaged .*; download it again"):
        load_rows(task, tmp_path, limit=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a, b]\n: c", "not valid YAML"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("[" * 1000, "nested too deeply"),
        (
            "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst")),
            "aliases",
        ),
        ("&a [*a]", "aliases"),
    ],
)
def test_yaml_that_python_gives_up_on(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"suite\.yaml.*{message}"):
        load_suite(tmp_path / "suite.yaml")


def test_a_message_is_never_longer_than_a_screen() -> None:
    said = str(UserError(f"begin {'x' * 10_000} end"))
    assert (said[:5], said[-3:]) == ("begin", "end")
    assert len(said) < 2000


# Results


# Tables


# Configs and flags


# Models
