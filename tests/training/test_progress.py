"""What a run shows while it goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmtune.training.callbacks import progress
from mmtune.training.callbacks.progress import TrainingProgress

Fit = Callable[..., int]
SHOWN = "--trainer.enable_progress_bar=true"
STEP = re.compile(r"step (\d+) of (\d+): loss \d+\.\d{3}, [\d,]+ tokens/s, \d+:\d\d gone, \d+:\d\d left")


@pytest.fixture
def flags(text_rows: Path, lora_flags: list[str]) -> list[str]:
    packs = ["--data.pack_rows=2", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"]
    return [f"--data.train.text=[{text_rows}]", *packs, *lora_flags]


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line and not line.startswith("Loading weights")]


def test_elsewhere_than_on_a_terminal_a_line_now_and_then(
    fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", *flags, SHOWN) == 0
    start, first, last = lines_of(capsys)
    assert re.fullmatch(r"Training [\d,]+ of \d+\.\d M parameters on 40 rows in 20 steps", start)
    for line, step in ((first, "1"), (last, "20")):
        match = STEP.fullmatch(line)
        assert match
        assert match.groups() == (step, "20")
    assert last.endswith(" 0:00 left")


def test_lines_come_after_some_seconds(
    fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    assert fit(tmp_path / "run", *flags, SHOWN) == 0
    steps = [match[1] for line in lines_of(capsys) if (match := STEP.fullmatch(line))]
    assert steps == [str(step) for step in range(1, 21)]  # optimizer steps of both epochs


def test_a_resumed_run_shows_where_it_is(
    fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(run, *flags, "--checkpoint_every=15") == 0
    shutil.rmtree(run / "model")
    capsys.readouterr()
    assert fit(run, *flags, SHOWN) == 0
    steps = [match[1] for line in lines_of(capsys) if (match := STEP.fullmatch(line))]
    assert steps == ["16", "20"]


def test_on_a_terminal_one_bar_over_all_steps(
    fit: Fit, flags: list[str], text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    consoles = []

    def terminal(**options: Any) -> Console:
        consoles.append(Console(force_terminal=True, width=120, **options))
        return consoles[-1]

    monkeypatch.setattr(progress, "Console", terminal)
    assert fit(tmp_path / "run", *flags, f"--data.validation=[{text_rows}]", SHOWN) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    final = re.split(r"[\r\n]+", shown.strip())[-1]
    assert "20/20" in final
    assert re.search(r"loss \d+\.\d{3}, [\d,]+ tokens/s, 0:\d\d gone, 0:00 left", final)
    assert len(consoles) == 1


def test_it_can_be_turned_off(fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "run", *flags) == 0
    assert lines_of(capsys) == []


def test_a_bar_of_the_users_takes_its_place(
    fit: Fit, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    assert fit(tmp_path / "run", *flags, SHOWN, bar) == 0
    assert "Epoch 1" in "".join(capsys.readouterr())


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TrainingProgress()
    bar.disable()
    bar.print("nothing")
    assert capsys.readouterr().err == ""
    bar.enable()
    bar.print("something")
    assert capsys.readouterr().err == "something\n"
