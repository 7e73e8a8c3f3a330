"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
import yaml

from mmtune.cli.main import main
from mmtune.training.callbacks.metrics_csv import MetricsCsv
from mmtune.training.module import InstructionTuning

Fit = Callable[..., int]
Same = Callable[[Path, Path], None]
Read = Callable[[Path, str], Any]

COUNTED = ("steps", "samples", "tokens", "flops", "tower_passes", "params")


def steps_of(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as stream:
        return [int(row["step"]) for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def flags(text_rows: Path, visual_rows: Path, vision_flags: list[str], lora_flags: list[str]) -> list[str]:
    return [
        f"--data.train.text=[{text_rows}]",
        f"--data.train.visual=[{visual_rows}]",
        "--data.pack_rows=1",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.gradient_clip_val=1.0",
        "--model.stored_features_gib=0",  # else the first run encodes the photos of all
        *vision_flags,
        *lora_flags,
    ]


def losses_of(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as stream:
        return [row["train_loss"] for row in csv.DictReader(stream)]


def first_difference(run: Path, other: Path) -> str:
    """Where two runs part, to see whether it was at a resume."""
    for step, (ours, theirs) in enumerate(zip(losses_of(run), losses_of(other), strict=False)):
        if ours != theirs:
            return f"the loss differs first at step {step}: {ours} and {theirs}"
    return "no loss differs"


def assert_same_run(run: Path, other: Path, read_run: Read, same_weights: Same) -> None:
    assert losses_of(run) == losses_of(other), first_difference(run, other)
    same_weights(run, other)
    ours, theirs = read_run(run, "ledger.json"), read_run(other, "ledger.json")
    assert {k: ours[k] for k in COUNTED} == {k: theirs[k] for k in COUNTED}
    assert steps_of(run) == steps_of(other) == list(range(ours["steps"]))


def test_from_every_checkpoint_the_run_ends_the_same(
    fit: Fit, flags: list[str], text_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    read_run: Read, same_weights: Same,
) -> None:  # fmt: skip
    flags = [*flags, "--data.train.total=7", "--trainer.max_epochs=2", "--checkpoint_every=1"]
    flags += [f"--data.validation=[{text_rows}]", "--trainer.val_check_interval=4"]
    kept: list[Path] = []
    save = pl.Trainer.save_checkpoint

    def save_and_keep(trainer: pl.Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        save(trainer, path, *args, **kwargs)
        kept.append(tmp_path / f"killed_{len(kept)}" / "checkpoints" / "last.ckpt")
        kept[-1].parent.mkdir(parents=True)
        shutil.copy(path, kept[-1])
        if (tmp_path / "whole" / "metrics.csv").is_file():
            shutil.copy(tmp_path / "whole" / "metrics.csv", kept[-1].parent.parent)

    with monkeypatch.context() as patched:
        patched.setattr(pl.Trainer, "save_checkpoint", save_and_keep)
        assert fit(tmp_path / "whole", *flags) == 0
    assert len(kept) >= 2 * 4
    for checkpoint in kept:  # each as if the run had been killed before it wrote the row of its last step
        run = checkpoint.parent.parent
        assert fit(run, *flags) == 0
        assert_same_run(run, tmp_path / "whole", read_run, same_weights)


class StoppedError(Exception):
    pass


def test_stopped_between_two_batches_of_one_step_right_after_a_resume(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_run: Read, same_weights: Same
) -> None:
    flags = [*flags, "--data.train.total=12", "--checkpoint_every=3"]
    assert fit(tmp_path / "whole", *flags) == 0
    run = tmp_path / "stopped"

    def stop(module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 7:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(InstructionTuning, "on_train_batch_start", stop)
        for _ in range(2):  # the second time one batch after the checkpoint
            with pytest.raises(StoppedError):
                fit(run, *flags)
            checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
            place = {"epoch": 0, "delivered": 6, "world": 1, "rounds_per_step": 2}
            assert checkpoint["place_in_data"] == place
    assert fit(run, *flags) == 0
    assert_same_run(run, tmp_path / "whole", read_run, same_weights)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_and_started_again(
    flags: list[str], base_flags: list[str], tmp_path: Path, workers: int, read_run: Read, same_weights: Same
) -> None:
    """Every part is a process of its own in one environment, for sums depend on the number of threads.

    One of them has another seed of hashes, so that no order of a set decides anything.
    """
    flags = [*base_flags, *flags, "--trainer.max_epochs=2", "--checkpoint_every=3", f"--data.num_workers={workers}"]

    def start(run: Path, **more: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        command = [sys.executable, "-m", "mmtune.cli.main", "fit", f"--out={run}", *flags]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)

    def finish(process: subprocess.Popen[bytes]) -> None:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, error.decode()

    finish(start(tmp_path / "whole"))
    run = tmp_path / "killed"
    last = run / "checkpoints" / "last.ckpt"
    resumed_after = []
    for part in range(2):  # twice, so that what was resumed is resumed as well
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(run, **({"PYTHONHASHSEED": "7"} if part else {}))
        deadline = time.monotonic() + 120
        while (not last.exists() or last.stat().st_mtime_ns == before) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1].decode()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (run / "model").exists()
        resumed_after.append(torch.load(last, weights_only=True)["global_step"])
        assert 0 < resumed_after[-1] < 2 * 23
    finish(start(run))
    print(
        f"resumed after steps {resumed_after}; {first_difference(run, tmp_path / 'whole')}"
    )  # shown if what follows fails
    assert_same_run(run, tmp_path / "whole", read_run, same_weights)


def test_a_resumed_runs_config_starts_from_the_beginning(
    fit: Fit, flags: list[str], tmp_path: Path, same_weights: Same
) -> None:
    flags = [*flags, "--data.train.total=12", "--checkpoint_every=2"]
    assert fit(tmp_path / "run", *flags) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model")
    assert fit(tmp_path / "resumed", *flags) == 0
    assert yaml.safe_load((tmp_path / "resumed" / "config.yaml").read_text())["ckpt_path"] is None
    assert main(["fit", "--config", str(tmp_path / "resumed" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    same_weights(tmp_path / "again", tmp_path / "run")


class TestMetricsCsv:
    def rows(self, run: Path) -> list[dict[str, str]]:
        with (run / "metrics.csv").open() as stream:
            return list(csv.DictReader(stream))

    def test_a_step_is_one_row_whatever_is_logged_when(self, tmp_path: Path) -> None:
        log = MetricsCsv(tmp_path)
        log.log_metrics({"loss": 1.0}, 0)
        log.log_metrics({"loss": 2.0}, 1)
        log.log_metrics({"val_loss": 7.0}, 1)
        log.log_metrics({"loss": 3.0}, 2)
        log.log_metrics({"loss": 4.123456789}, 2)
        log.log_metrics({"loss": 4.5, "val_loss": 8.0}, 2)
        log.save()
        assert self.rows(tmp_path) == [
            {"step": "0", "loss": "1.0", "val_loss": ""},
            {"step": "1", "loss": "2.0", "val_loss": "7.0"},
            {"step": "2", "loss": "4.5", "val_loss": "8.0"},
        ]
        assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]

    def test_a_row_is_on_disk_at_once_and_is_appended(self, tmp_path: Path) -> None:
        log = MetricsCsv(tmp_path)
        log.log_metrics({"loss": 1.0}, 0)
        inode = (tmp_path / "metrics.csv").stat().st_ino
        for step in range(1, 50):
            log.log_metrics({"loss": float(step)}, step)
            assert self.rows(tmp_path)[-1]["step"] == str(step)
        assert (tmp_path / "metrics.csv").stat().st_ino == inode

    def test_a_resumed_log_repeats_no_step_and_drops_half_a_row(self, tmp_path: Path) -> None:
        log = MetricsCsv(tmp_path)
        for step in range(5):
            log.log_metrics({"loss": float(step), "rate": 0.5}, step)
        with (tmp_path / "metrics.csv").open("a") as stream:
            stream.write("5,1.")
        again = MetricsCsv(tmp_path)
        again.log_metrics({"loss": 30.0, "rate": 0.1}, 3)
        assert [(r["step"], r["loss"]) for r in self.rows(tmp_path)] == [
            ("0", "0.0"),
            ("1", "1.0"),
            ("2", "2.0"),
            ("3", "30.0"),
        ]


@pytest.fixture(scope="module")
def begun(fit: Fit, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that is not finished, and its flags."""
    run = tmp_path_factory.mktemp("begun") / "run"
    flags = [*flags, "--data.train.total=12", "--checkpoint_every=2", "--trainer.max_epochs=2"]
    assert fit(run, *flags) == 0
    shutil.rmtree(run / "model")
    return run, flags


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            [
                "--model.learning_rate=0.001",
                "--model.weight_decay=0.1",
                "--model.warmup=0.5",
                "--model.projector_learning_rate=0.5",
                "--model.lora.alpha=9",
                "--model.lora.dropout=0.2",
                "--model.lora.rslora=true",
                "--model.vision.fit=crop",
                "--model.dtype=bfloat16",
                "--model.seed=7",
            ],
            [
                "--model.learning_rate 0.01, not 0.001",
                "--model.weight_decay 0.0, not 0.1",
                "--model.warmup 0.03, not 0.5",
                "--model.projector_learning_rate 2e-05, not 0.5",
                "--model.lora.alpha 8, not 9",
                "--model.lora.dropout 0.1, not 0.2",
                "--model.lora.rslora False, not True",
                "--model.vision.fit pad, not crop",
                "--model.dtype float32, not bfloat16",
                "--model.seed 42, not 7",
            ],
        ),
        (
            [
                "--seed_everything=7",
                "--trainer.precision=bf16-mixed",
                "--trainer.gradient_clip_val=0.5",
                "--trainer.gradient_clip_algorithm=value",
                "--trainer.limit_train_batches=0.5",
            ],
            [
                "--seed_everything 42, not 7",
                "--trainer.precision 32-true, not bf16-mixed",
                "--trainer.gradient_clip_val 1.0, not 0.5",
                "--trainer.gradient_clip_algorithm None, not value",
                "--trainer.limit_train_batches 1.0, not 0.5",
            ],
        ),
        (
            ["--trainer.max_epochs=4"],
            ["--trainer.max_epochs 2, not 4; the learning rate follows from it and would jump"],
        ),
        (["--trainer.max_steps=9"], ["--trainer.max_steps -1, not 9; the learning rate"]),
        (["--trainer.accumulate_grad_batches=1"], ["--trainer.accumulate_grad_batches 2, not 1; give that"]),
        (["--data.train.total=11"], ["other rows, or with other --data options"]),
        (["--data.train.seed=7", "--data.pack_rows=2"], ["seed 42 then and 7 now", "packs 12 then and 6 now"]),
        (["--model.template=vicuna_v1"], ["another template"]),
    ],
)
def test_a_run_goes_on_as_it_began_or_not_at_all(
    fit: Fit, begun: tuple[Path, list[str]], changed: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The optimizer's states would put the old rates in the place of the new, and config.yaml would have the new."""
    run, flags = begun
    config = (run / "config.yaml").read_bytes()
    assert fit(run, *flags, *changed) == 2
    said = capsys.readouterr().err
    assert [part for part in named if part not in said] == []
    assert "to resume" in said
    assert not (run / "model").exists()
    assert (run / "config.yaml").read_bytes() == config


def test_a_longer_schedule_is_taken_where_it_is_asked_for(
    fit: Fit, begun: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(begun[0], tmp_path / "run")
    before = steps_of(run)
    assert fit(run, *begun[1], "--trainer.max_epochs=3", "--new_schedule=true") == 0
    assert "began with --trainer.max_epochs 2, not 3; the learning rate jumps" in capsys.readouterr().err
    assert len(steps_of(run)) == len(before) * 3 // 2


def test_what_decides_no_weight_is_free(fit: Fit, begun: tuple[Path, list[str]], tmp_path: Path) -> None:
    run = shutil.copytree(begun[0], tmp_path / "run")
    changed = ["--checkpoint_every=3", "--data.num_workers=1", "--data.cache_tokens=false", "--data.check_images=false"]
    changed += ["--model.gradient_checkpointing=true", "--trainer.log_every_n_steps=5"]
    assert fit(run, *begun[1], *changed) == 0


def test_frozen_weights_that_were_changed_in_place_are_noticed(
    fit: Fit, flags: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language = shutil.copytree(llama, tmp_path / "language")
    flags = [*flags, f"--model.language={language}", "--data.train.total=4", "--checkpoint_every=1"]
    run = tmp_path / "run"
    assert fit(run, *flags) == 0
    shutil.rmtree(run / "model")
    moved = shutil.copytree(language, tmp_path / "moved")
    assert fit(run, *flags, f"--model.language={moved}") == 0
    shutil.rmtree(run / "model")
    weights = safetensors.torch.load_file(language / "model.safetensors")
    weights["model.norm.weight"][[0, 1]] = torch.tensor([2.0, 3.0])
    safetensors.torch.save_file(weights, language / "model.safetensors", metadata={"format": "pt"})
    assert fit(run, *flags) == 2
    assert "other frozen weights: the language model or the tower was changed" in capsys.readouterr().err
