"""`mmtune compare`: its tables, its files and its messages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from evaluations import HOSTILE, sample, write_evaluation

from mmtune.cli.main import main


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    tasks = {"read": [0, 0, 1, 1, 0], "see": [0, 0, 0, 1]}, {"read": [1, 1, 1, 0, 1], "see": [1, 1, 1, 1], "new": [1]}
    return [str(write_evaluation(tmp_path / name, given)) for name, given in zip("ab", tasks, strict=True)]


def test_tables_and_files(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compare", *folders, "--out", str(out), "--html", "--flips", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r" read +│ +5 │ +40\.0 │ +80\.0 │ +\+40\.0 │ +−?[\d.]+ … \+[\d.]+ │ +3 │ +1 │ 0\.625", printed)
    assert re.search(r" see +│ +4 │ +25\.0 │ 100\.0 │ +\+75\.0 ", printed)
    assert re.search(r" overall, average +│ +│ +32\.5 │ +90\.0 │ +\+57\.5 ", printed)
    assert "Flipped from A to B: 2 of 7 samples" in printed
    assert "Left out: new, which only B has." in printed
    assert "seed 0" in printed
    assert str(out / "comparison.json") in printed.replace("\n", "")
    values = json.loads((out / "comparison.json").read_text())
    assert len(values["comparisons"][0]["tasks"]["read"]["flips"]) == 4
    assert (out / "comparison.html").is_file()


def test_without_out_nothing_is_written(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *folders, "--flips", "0", "--tasks", "see, read", "--seed", "3"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "Flipped" not in printed
    assert "seed 3" in printed
    assert "Left out" not in printed


def test_what_models_say_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = [sample(0, 0, prompt=HOSTILE, response=HOSTILE, prediction=HOSTILE, target=HOSTILE)]
    new = [sample(0, 1, prompt=HOSTILE, response=HOSTILE, prediction=None, target=HOSTILE)]
    a = write_evaluation(tmp_path / "a", {"t[red]": old}, model=HOSTILE)
    b = write_evaluation(tmp_path / "b", {"t[red]": new}, model="[link=x]m[/link]")
    assert main(["compare", str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", printed)
    squeezed = re.sub(r"[\s│]", "", printed)
    for text in ("t[red]", "[link=x]m[/link]", "␛[31mred", "⟨U+D800⟩", "[bold]x[/]"):
        assert text in squeezed or text in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--html"], "--out DIR"),
        (["--flips", "-1"], "--flips -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--tasks", "raed"], "did you mean 'read'"),
        (["--tasks", ","], "--tasks"),
        (["--resamples", "9"], "mmtune compare --help"),
    ],
)
def test_wrong_flags(folders: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *folders, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_refusal_is_one_line_that_names_both_files_and_the_field(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_evaluation(tmp_path / "c", {"read": [1]}, changes={"read": {"protocol": "\x1b[31m\nmlan"}})
    assert main(["compare", folders[0], str(other), "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "\x1b" not in output.err
    for part in (f"{folders[0]}/results.json", f"{other}/results.json", "protocol", "'read'"):
        assert part in output.err
    assert not (tmp_path / "out").exists()


def test_one_evaluation_is_not_enough(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", folders[0]]) == 2
    assert "two or more" in capsys.readouterr().err


def test_an_out_that_cannot_be_written(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["compare", *folders, "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
