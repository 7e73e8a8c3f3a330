"""An evaluation goes on with the date on which it began; changed content is asked again, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripted_models import SUITE, small_data

from mmtune.cli.main import main
from mmtune.evaluation.run import prompt_date

JINJA = (
    "Today: {{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def language(llama: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(llama, tmp_path / "language")
    (folder / "chat_template.jinja").write_text(JINJA)
    return folder


@pytest.fixture
def flags(language: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "small.yaml").write_text(SUITE)
    flags = ["eval", "--model", str(language), "--suite", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    return [*flags, "--data-root", str(small_data(tmp_path)), "--tasks", "boolq", "--limit", "2", "--device", "cpu"]


def asked(capsys: pytest.CaptureFixture[str]) -> bool:
    return "finished before" not in capsys.readouterr().err


def test_the_date_of_an_evaluation(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def written() -> str | None:
        date: str | None = json.loads((tmp_path / "out" / "results.json").read_text())["template_date"]
        return date

    monkeypatch.setattr(prompt_date, "today", lambda: "2026-01-05")
    assert main(flags) == 0
    assert (asked(capsys), written()) == (True, "2026-01-05")
    monkeypatch.setattr(prompt_date, "today", lambda: "2026-01-06")
    assert main(flags) == 0
    assert (asked(capsys), written()) == (False, "2026-01-05")
    assert main([*flags, "--template-date", "2026-01-07"]) == 0
    assert (asked(capsys), written()) == (True, "2026-01-07")


def test_an_edited_chat_template_is_asked_again(
    flags: list[str], language: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 0
    assert asked(capsys)
    (language / "chat_template.jinja").write_text("Kindly. " + JINJA)
    assert main(flags) == 0
    assert asked(capsys)
    assert main(flags) == 0
    assert not asked(capsys)
