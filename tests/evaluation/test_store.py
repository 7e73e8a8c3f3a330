"""The folder of an evaluation: damaged, full, of another version; and what answers may hold."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_models import BOOLQ, Scripted, small_data, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.database import Database
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer

COST = dict.fromkeys(COSTS, 1.0)
ANY_TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "Cc", "Cf", "Cs", "Co")))
FIGURES = st.none() | st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)).map(tuple)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(data: Path, out: Path, reply: Callable[[str], str] = lambda _: "yes", **options: Any) -> Scripted:
    model = Scripted(reply)
    evaluate(model, "boolq", data_root=data, out=out, progress=False, **options)
    return model


@pytest.mark.parametrize("damage", [{"score": "0.5"}, {"cost": []}, {"n": 1.5}, {"more": 1}])
def test_a_task_that_was_damaged_is_scored_again_from_its_answers(
    damage: dict[str, Any], data: Path, out: Path
) -> None:
    run(data, out)
    sound = json.loads((out / "results.json").read_text())
    damaged = sound | {"tasks": {"boolq": sound["tasks"]["boolq"] | damage}}
    (out / "results.json").write_text(json.dumps(damaged))
    assert not run(data, out).calls
    assert json.loads((out / "results.json").read_text())["tasks"] == sound["tasks"]


@given(
    st.lists(st.builds(Answer, st.integers(0, 9), ANY_TEXT, FIGURES, st.none() | ANY_TEXT), unique_by=lambda a: a.row)
)
def test_answers_come_back_as_they_were_given(answers: list[Answer]) -> None:
    database = Database(None)
    database.add("key", 3, answers, COST)
    database.add("other", 3, [Answer(0, "another")], COST)
    assert database.answers("key") == {(answer.row, 0): answer for answer in answers}
    assert (database.chunks("key"), database.rows("key")) == ({3}, len(answers))
    database.close()


def test_a_chunk_is_stored_once_and_whole() -> None:
    database = Database(None)
    database.add("key", 0, [Answer(0, "first")], COST)
    database.add("key", 0, [Answer(0, "second"), Answer(1, "second")], COST)
    assert database.answers("key") == {(0, 0): Answer(0, "first")}
    with pytest.raises(sqlite3.IntegrityError):
        database.add("key", 1, [Answer(5), Answer(0, "a row of another chunk")], COST)
    assert database.chunks("key") == {0}
    assert set(database.answers("key")) == {(0, 0)}
    assert database.cost("key") == {"seconds": 1.0, **dict.fromkeys(COSTS[1:], 1)}
    database.forget("key")
    assert database.chunks("key") == set()
    assert database.cost("key")["prompt_tokens"] == 0


def scribbled(file: Path) -> None:
    file.write_bytes(b"no database at all" * 99)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def torn(file: Path) -> None:
    pages = bytearray(file.read_bytes())
    pages[4096:] = os.urandom(len(pages) - 4096)
    file.write_bytes(pages)


def altered(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE answers SET answer='{' WHERE row=3")


@pytest.mark.parametrize("damage", [scribbled, cut, torn, altered])
def test_a_damaged_database_is_named(data: Path, out: Path, damage: Callable[[Path], None]) -> None:
    run(data, out)
    damage(out / "answers.sqlite")
    with pytest.raises(UserError, match=r"out/answers.sqlite: damaged .*delete it to ask everything again, or .*--out"):
        run(data, out)
    (out / "answers.sqlite").unlink()
    assert run(data, out).asked == len(BOOLQ)


def test_another_version_s_database_is_left_alone(data: Path, out: Path) -> None:
    run(data, out)
    with closing(sqlite3.connect(out / "answers.sqlite")) as connection, connection:
        connection.execute("PRAGMA user_version=99")
    before = (out / "answers.sqlite").read_bytes()
    with pytest.raises(UserError, match=r"answers.sqlite: written by another version of mmtune \(layout 99"):
        run(data, out)
    assert (out / "answers.sqlite").read_bytes() == before


def test_a_database_that_cannot_be_made_is_named(data: Path, out: Path) -> None:
    (out / "answers.sqlite").mkdir(parents=True)
    with pytest.raises(UserError, match=r"answers.sqlite: cannot be read or written .*choose another --out"):
        run(data, out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing(data: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.evaluation.run.chunks.QUESTIONS", 5)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(850_000))
    rows = [{**BOOLQ[n % 10], "question": f"is {n} an even number"} for n in range(60)]
    write_rows(data, "google/boolq", None, "validation", rows)
    long = "yes." + "x" * 4000
    with pytest.raises(UserError, match=r"disk is full"):
        run(data, small_disk / "out", lambda _: long)
    ballast.unlink()
    with closing(sqlite3.connect(small_disk / "out/answers.sqlite")) as connection:
        kept = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert 0 < kept < 60
    assert run(data, small_disk / "out").asked == 60 - kept
    lines = (small_disk / "out/samples/boolq.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["response"] == long for line in lines) == kept


@pytest.mark.parametrize("written", ["samples/boolq.jsonl", "results.json"])
def test_a_disk_that_fills_up_with_results_keeps_the_answers(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    real = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == Path(written).name and "w" in (*args, kwargs.get("mode")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=rf"{written}: the disk is full; free some space; the answers are kept"):
        run(data, out)
    monkeypatch.undo()
    assert run(data, out).asked == 0
    assert len((out / "samples/boolq.jsonl").read_text().splitlines()) == len(BOOLQ)


def test_answers_are_stored_as_they_are(data: Path, out: Path) -> None:
    said = '\x1b[31m\x00[bold]<b>\ud800 \x85\u2028\u2029\x7f"\n\r\u202e日本'
    run(data, out, lambda _: said)
    text = (out / "samples/boolq.jsonl").read_text(encoding="utf-8")
    assert all(character.isprintable() or character in "\n\u202e" for character in text)
    assert "日本" in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["response"] for line in lines] == [said] * len(BOOLQ)
    assert run(data, out).asked == 0
