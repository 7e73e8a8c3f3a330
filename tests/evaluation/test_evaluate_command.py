"""`mmtune eval`: its flags, its table and its messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_models import SUITE, Scripted, small_data

import mmtune.evaluation.run.engine as engine
from mmtune.cli.main import main


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "small.yaml").write_text(SUITE)
    data = small_data(tmp_path)
    given = {
        "--model": "m",
        "--suite": tmp_path / "small.yaml",
        "--out": tmp_path / "out",
        "--data-root": data,
    }
    return ["eval", *(str(part) for pair in given.items() for part in pair)]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def load(path: str, device: str, **_: object) -> Scripted:
        assert (path, device) in (("m", "cpu"), ("m", "auto"))
        calls.append(Scripted(lambda _: "yes"))
        return calls[-1]

    monkeypatch.setattr(engine, "load_model", load)
    monkeypatch.setattr(engine, "check_reference", lambda *_, **__: None)  # looks for the model's config
    return calls


def test_scores_are_printed_and_written(
    flags: list[str], loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--limit", "8", "--batch-tokens", "99", "--device", "cpu", "--tasks", "boolq, pope"]) == 0
    assert len(loaded) == 1
    output = capsys.readouterr()
    for word in ("boolq", "pope", "average, language", "unparsed %", "prompt tokens", "results.json"):
        assert word in output.out
    assert "boolq: 8 rows, 50.0 %" in output.err
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]) == ["boolq", "pope"]


def test_resume_is_the_default(flags: list[str], loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == main(flags) == 0
    assert "finished before" in capsys.readouterr().err
    assert main([*flags, "--no-resume"]) == 0
    assert "finished before" not in capsys.readouterr().err


@pytest.mark.near_ties  # a script gives all choices the same figure
def test_flags_reach_the_evaluation(flags: list[str], loaded: list[Any], tmp_path: Path) -> None:
    assert main([*flags, "--answering", "likelihood_norm", "--no-share-prefixes", "--strict", "--limit", "2"]) == 0
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert {task["answering"] for task in tasks.values()} == {"likelihood_norm"}
    assert loaded[0].options["share_prefixes"] is False


def test_names_cannot_steer_the_terminal(
    flags: list[str], loaded: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Scripted, "named", "\x1b[31m[red]m[/nothing]\ud800")
    assert main([*flags, "--tasks", "boolq"]) == 0
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "[red]m[/nothing]" in shown


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--suite", "mlan"], "mlan: no file and no name in mmtune's eval_suites; did you mean 'mlan9'?"),
        (["--tasks", "bolq"], "did you mean 'boolq'?"),
        (["--tasks", ""], "--tasks: names no task"),
        (["--data-root", "gone"], "--data-root gone: no such folder"),
        (["--limit", "0"], "--limit 0"),
        (["--limit", "many"], "limit"),
        (["--protocol", "blnd"], "protocol"),
        (["--answering", "likely"], "answering"),
        (["--seed", "-1"], "--seed -1"),
        (["--batches", "3"], "--help lists the flags"),
    ],
)
def test_mistakes_exit_with_2_and_one_line_before_the_model_is_loaded(
    flags: list[str], loaded: list[Any], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmtune: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert loaded == []


def test_a_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "m", "--suite", "mlan9"]) == 2
    assert "out" in capsys.readouterr().err


def test_a_missing_file_is_named_before_the_model_is_loaded(
    flags: list[str], loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub/lmms-lab/POPE/default/test.parquet").unlink()
    assert main(flags) == 2
    assert "POPE/default/test.parquet: no such file" in capsys.readouterr().err
    assert loaded == []
