"""What `mmtune quickstart` takes for done when it is called again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtune.cli import quickstart
from mmtune.cli.main import main

Run = Callable[[Path], int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the quickstart on the data of a folder, with steps that do nothing."""
    monkeypatch.setattr("mmtune.models.language.load_tokenizer", lambda _: None)
    for name in ("_evaluate", "_tune"):
        monkeypatch.setattr(quickstart, name, lambda *_: None)
    for name in ("write_report", "read_variants", "_show"):
        monkeypatch.setattr(quickstart, name, lambda *_, **__: None)

    def called(data: Path) -> int:
        monkeypatch.setattr(quickstart, "prepare", lambda: data)
        return main(["quickstart", "--out", str(tmp_path / "run")])

    return called


def data(folder: Path, row: str = "{}") -> Path:
    (folder / "hub" / "easy_vqa").mkdir(parents=True)
    (folder / "instructions.jsonl").write_text(row)
    return folder


def test_the_same_content_goes_on_wherever_it_lies(run: Run, tmp_path: Path) -> None:
    assert run(data(tmp_path / "one")) == 0
    assert run(data(tmp_path / "two")) == 0
    assert "instructions.jsonl" in json.loads((tmp_path / "run" / "quickstart.json").read_text())["inputs"]


def test_other_instructions_are_refused_by_their_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data(tmp_path / "one")) == 0
    record = (tmp_path / "run" / "quickstart.json").read_text()
    assert run(data(tmp_path / "two", '{"instruction": "another"}')) == 2
    assert "was begun with other contents of instructions.jsonl; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "run" / "quickstart.json").read_text() == record


@pytest.mark.parametrize("kind", ["configs", "model"])
def test_another_config_or_model_is_refused(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data(tmp_path / "one")) == 0
    if kind == "configs":
        (tmp_path / "other.yaml").write_text("out: runs/other")
        monkeypatch.setattr("mmtune.experiments.recorded_inputs.find_resource", lambda *_: tmp_path / "other.yaml")
    else:
        (tmp_path / "mmtune.json").write_text("{}")
        monkeypatch.setattr("mmtune.experiments.recorded_inputs.model_folder", lambda _: tmp_path)
    assert run(tmp_path / "one") == 2
    assert "was begun with other contents of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[]", "must be a mapping"),
        ("{}", "key 'budget' is missing"),
        ('{"budget": "full", "inputs": 3}', "inputs: must"),
    ],
)
def test_a_damaged_record_is_named(
    record: str, message: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data(tmp_path / "one")) == 0
    (tmp_path / "run" / "quickstart.json").write_text(record)
    assert run(tmp_path / "one") == 2
    assert f"run/quickstart.json: {message}" in capsys.readouterr().err
