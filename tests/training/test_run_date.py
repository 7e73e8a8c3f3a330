"""A run whose chat template writes the day's date is resumed on another day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmtune.training import module

Fit = Callable[..., int]


@pytest.fixture
def flags(llama: Path, text_rows: Path, tmp_path: Path) -> list[str]:
    language = shutil.copytree(llama, tmp_path / "language")
    jinja = (
        "Today: {{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content"
        " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (language / "chat_template.jinja").write_text(jinja)
    flags = [f"--model.language={language}", "--model.template=tokenizer", f"--data.train.text=[{text_rows}]"]
    return [*flags, "--data.train.total=4", "--model.lora.r=2", "--checkpoint_every=1"]


def date_of(run: Path) -> tuple[str, str]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    return config["model"]["template_date"], json.loads((run / "model" / "mmtune.json").read_text())["spec"][
        "template_date"
    ]


def test_a_run_keeps_the_date_on_which_it_began(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(module, "today", lambda: "2026-01-05")
    assert fit(run, *flags) == 0
    assert date_of(run) == ("2026-01-05", "2026-01-05")
    shutil.rmtree(run / "model")
    monkeypatch.setattr(module, "today", lambda: "2026-01-06")
    capsys.readouterr()
    assert fit(run, *flags, "--model.template_date=2026-01-07") == 2
    assert "began with --model.template_date 2026-01-05, not 2026-01-07" in capsys.readouterr().err
    assert fit(run, *flags) == 0
    assert date_of(run) == ("2026-01-05", "2026-01-05")
    assert fit(tmp_path / "next", "--config", str(run / "config.yaml"), f"--out={tmp_path / 'next'}") == 0
    assert date_of(tmp_path / "next")[1] == "2026-01-05"


def test_the_date_is_an_option(fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "run", *flags, "--model.template_date=2025-12-24") == 0
    assert date_of(tmp_path / "run") == ("2025-12-24", "2025-12-24")
    assert fit(tmp_path / "bad", *flags, "--model.template_date=soon") == 2
    assert "--model.template_date soon: give a day as YEAR-MONTH-DAY" in capsys.readouterr().err
