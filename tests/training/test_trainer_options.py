"""Flags that are nearly right, and options of Lightning's trainer: each works, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmtune.cli.main import main


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    [error] = capsys.readouterr().err.splitlines()
    return error.removeprefix("mmtune: error: ")


@pytest.mark.parametrize(
    ("command", "given", "meant"),
    [
        ("fit", "--trainer.max_epoch", "--trainer.max_epochs"),
        ("fit", "--model.learning_rat", "--model.learning_rate"),
        ("fit", "--data.train.tex", "--data.train.text"),
        ("validate", "--model.bas", "--model.base"),
        ("plan", "--row", "--rows"),
        ("plan", "--trainer.max_epoch", "--trainer.max_epochs"),
        ("eval", "--limi", "--limit"),
        ("quickstart", "--budge", "--budget"),
    ],
)
@pytest.mark.parametrize("equals", [True, False])
def test_the_beginning_of_a_flag_is_not_the_flag(
    command: str, given: str, meant: str, equals: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused([command, *([f"{given}=1"] if equals else [given, "1"])], capsys)
    assert error.startswith(f"{given}: no such flag; did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("overfit_batches=2", "packs are drawn anew in each epoch"),
        ("overfit_batches=0.5", "give --data.train.total 16 and more --trainer.max_epochs"),
        ("barebones=true", "leaves out what a run is made of"),
        ("limit_train_batches=0", "must be above 0"),
        ("limit_train_batches=0.0", "must be above 0"),
        ("val_check_interval=0", "must be above 0"),
        ("default_root_dir=elsewhere", "the folder of a run is --out"),
        ("gradient_clip_val=-1", "must be at least 0"),
        ("accumulate_grad_batches=0", "must be at least 1"),
        ("log_every_n_steps=0", "must be at least 1"),
        ("check_val_every_n_epoch=0", "must be at least 1"),
        ("max_epochs=-2", "must be at least -1"),
        ("max_steps=-2", "must be at least -1"),
    ],
)
def test_what_a_run_cannot_have_is_refused(
    flag: str, message: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "a", "answer": "b"}))
    argv = ["fit", f"--model.language={llama}", f"--data.train.text=[{rows}]", f"--out={tmp_path / 'run'}"]
    error = refused([*argv, "--trainer.accelerator=cpu", f"--trainer.{flag}"], capsys)
    name, value = flag.split("=")
    assert error.startswith(f"--trainer.{name} {value}".removesuffix(".0"))
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("EMAWeightAveraging", "decay: 0.5"),
        ("StochasticWeightAveraging", "swa_lrs: 0.05"),
        ("GradientAccumulationScheduler", "scheduling: {0: 2}"),
    ],
)
def test_callbacks_that_change_what_is_learned_are_refused(
    name: str, given: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "a", "answer": "b"}))
    argv = ["fit", f"--model.language={llama}", f"--data.train.text=[{rows}]", f"--out={tmp_path / 'run'}"]
    callback = f"{{class_path: lightning.pytorch.callbacks.{name}, init_args: {{{given}}}}}"
    assert main([*argv, "--trainer.accelerator=cpu", f"--trainer.callbacks=[{callback}]"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # Lightning has said what it thinks of the callback's device
    assert error.startswith(f"mmtune: error: --trainer.callbacks {name}: ")
    assert not (tmp_path / "run").exists()
