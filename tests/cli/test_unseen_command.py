"""`mmtune data --unseen`: the table, the hits, JSON, and mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.cli.main import main

WORDS = [f"word{n}" for n in range(40)]
QUESTIONS = [" ".join(WORDS[:20]) + "?", " ".join(WORDS[20:]) + "\x1b[31m [bold]?"]
TASK = {
    "version": 1, "modality": "language", "prompt": "{{ question }}", "target": "{{ answer }}", "answer": "short",
    "max_tokens": 4, "metrics": ["accuracy"],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    for name in ("there", "missing"):
        task = {"name": name, **TASK, "dataset": {"path": f"own/{name}", "split": "test"}}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    (folder / "own.yaml").write_text(json.dumps({"name": "own", "tasks": ["there.yaml", "missing.yaml"]}))
    file = folder / "hub" / "own" / "there" / "default" / "test.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"question": q, "answer": "x"} for q in QUESTIONS]), file)
    return folder


def write(path: Path, *rows: Any) -> str:
    lines = (json.dumps(row) if isinstance(row, dict) else row for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def pair(text: str) -> dict[str, str]:
    return {"prompt": text, "completion": "yes"}


def lines(text: str) -> list[str]:
    return [" ".join(re.sub("[│┃]", " ", line).split()) for line in text.splitlines()]


def test_the_table_and_both_rows_of_a_hit(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(
        tmp_path / "rows.jsonl", pair("clean"), pair(" ".join(WORDS[22:38])), "{", pair(" ".join(WORDS[21:39]))
    )
    clean = write(tmp_path / "clean.jsonl", pair("clean"))
    assert main(["data", file, clean, "--unseen", str(root / "own.yaml"), "--data-root", str(root)]) == 0
    said = capsys.readouterr()
    shown = lines(said.out)
    assert shown[0] == "Is own unseen?"
    assert "there 2 – 1 1 – – seen" in shown
    assert "missing – – – – – – unchecked" in shown
    for number, words in ((2, WORDS[22:38]), (4, WORDS[21:39])):
        where = shown.index(f"there, row 1 ⟷ {file}, row {number}: text")
        assert shown[where + 1] == " ".join(words)
    assert any(line.startswith("missing is unchecked: ") and "no such file" in line for line in shown)
    assert f"rows that cannot be used, and were not compared: 1; the first: {file}, row 3: not valid JSON" in said.out
    assert shown[-1] == "own against 4 training rows: 0 sets unseen, 1 seen (there: 1 of 2 rows), 1 unchecked (missing)"
    assert said.err == ""


def test_json_lists_all_hits(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", *[pair(QUESTIONS[0])] * 30)
    flags = ["--unseen", str(root / "own.yaml"), "--data-root", str(root)]
    assert main(["data", file, *flags, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {(hit["task"], hit["task_row"], hit["source"]) for hit in values["hits"]} == {("there", 0, file)}
    assert {hit["row"] for hit in values["hits"]} == set(range(1, 31))
    assert values["sets"]["missing"]["verdict"] == "unchecked"
    assert values["bad_rows"]["count"] == 0
    main(["data", file, *flags])
    assert "… and 40 more pairs of rows" in capsys.readouterr().out  # by text and by question


def test_what_data_says_does_not_steer_the_terminal(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "[bold]\x1b[2J.jsonl", pair(QUESTIONS[1]), {"\x1b[31m": 1})
    main(["data", file, "--unseen", str(root / "own.yaml"), "--data-root", str(root)])
    out = capsys.readouterr().out
    assert "[bold]␛[2J.jsonl, row 1: text" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unseen", "locl9"], "--unseen: locl9: .*did you mean 'local9'"),
        (["--unseen", "{root}/own.yaml", "--data-root", "{root}/none"], "--data-root .*none: no such folder"),
        (["--data-root", "{root}"], "--data-root .*--unseen SUITE"),
        (["--unseen", "{root}/missing.yaml", "--data-root", "{root}"], "--unseen .*none of its sets can be compared"),
        (["nowhere.jsonl", "--unseen", "{root}/own.yaml", "--data-root", "{root}"], "nowhere.jsonl: no such file"),
        (
            ["--unseen", "{root}/own.yaml", "--data-root", "{root}", "--image-root", "none"],
            "--image-root none: no such",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(
    flags: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.jsonl", pair("clean"))
    assert main(["data", file, *(flag.format(root=root) for flag in flags)]) == 2
    said = capsys.readouterr()
    assert re.match(f"mmtune: error: {message}", said.err)
    assert (said.err.count("\n"), said.out) == (1, "")
