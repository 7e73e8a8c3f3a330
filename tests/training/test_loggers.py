"""Beside metrics.csv: TensorBoard where it is installed, and Lightning's other loggers by config."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

from mmtune.training import loggers
from mmtune.training.callbacks.metrics_csv import MetricsCsv
from mmtune.training.module import InstructionTuning

Fit = Callable[..., int]
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def flags(text_rows: Path) -> list[str]:
    return [f"--data.train.text=[{text_rows}]", "--data.pack_rows=4", "--model.lora.r=4", "--checkpoint_every=3"]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if packages were not installed."""

    def hide(*names: str) -> None:
        monkeypatch.setattr(loggers, "find_spec", lambda name: None if name in names else find_spec(name))

    return hide


def logged_to_csv(run: Path) -> Curves:
    curves: Curves = {}
    with (run / "metrics.csv").open() as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if name != "step" and value:
                    curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def logged_to_tensorboard(run: Path) -> Curves:
    """What TensorBoard shows: values that a later part of the run took back are none."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_curves(run: Path) -> None:
    ours, theirs = logged_to_csv(run), logged_to_tensorboard(run)
    # Lightning logs the epoch beside what is measured, so twice for a step that is followed by a validation
    theirs["epoch"] = sorted(set(theirs["epoch"]))
    assert {name: [(step, pytest.approx(v, rel=1e-6)) for step, v in curve] for name, curve in ours.items()} == theirs


def test_tensorboard_has_what_metrics_csv_has(fit: Fit, flags: list[str], text_rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(run, *flags, f"--data.validation=[{text_rows}]", "--trainer.val_check_interval=4") == 0
    assert {"train_loss", "val_loss", "tokens_per_s"} <= set(logged_to_csv(run))
    assert_same_curves(run)
    (file,) = (run / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents")
    assert not list(tmp_path.rglob("hparams.yaml"))
    assert not (run / "lightning_logs").exists()


class StoppedError(Exception):
    pass


def test_a_resumed_run_goes_on_with_the_same_curves(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def stop(module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 8:  # two steps past the checkpoint
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(InstructionTuning, "on_train_batch_start", stop)
        with pytest.raises(StoppedError):
            fit(run, *flags)
    assert fit(run, *flags) == 0
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert [step for step, _ in logged_to_tensorboard(run)["train_loss"]] == list(range(10))
    assert_same_curves(run)


def test_files_of_parts_that_follow_at_once_are_in_order(tmp_path: Path) -> None:
    for step in range(3):
        logger = loggers.TensorBoard(tmp_path, MetricsCsv(tmp_path))
        logger.log_metrics({"train_loss": 1.0}, step)
        logger.finalize("success")
    files = (tmp_path / "tensorboard").iterdir()
    assert len({file.name.split(".")[3] for file in files}) == 3  # their seconds


@pytest.mark.parametrize("steps", [6, 7])  # nothing is left to do after the checkpoint, or one step
def test_killed_right_after_a_checkpoint(
    steps: int, fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, killed = tmp_path / "run", tmp_path / "killed"
    flags = [*flags, f"--trainer.max_steps={steps}"]
    save = pl.Trainer.save_checkpoint

    def save_and_keep(trainer: pl.Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        save(trainer, path, *args, **kwargs)
        if trainer.global_step == 6 and not killed.exists():
            shutil.copytree(run, killed)

    with monkeypatch.context() as patched:
        patched.setattr(pl.Trainer, "save_checkpoint", save_and_keep)
        assert fit(run, *flags) == 0
    assert [step for step, _ in logged_to_tensorboard(killed)["train_loss"]] == list(range(5))
    assert fit(killed, *flags) == 0
    assert [step for step, _ in logged_to_tensorboard(killed)["train_loss"]] == list(range(steps))
    assert_same_curves(killed)


@pytest.mark.parametrize("missing", [False, True])
def test_without_tensorboard(
    missing: bool, fit: Fit, flags: list[str], tmp_path: Path, without: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    if missing:
        without("tensorboard", "tensorboardX")
    assert fit(run, *flags, *([] if missing else ["--trainer.logger=false"])) == 0
    assert logged_to_csv(run)
    assert not (run / "tensorboard").exists()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_logger_whose_package_is_missing(
    name: str, package: str, fit: Fit, tmp_path: Path, without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without(package)
    assert fit(tmp_path / "run", "--config", name) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--trainer.logger" in line
    assert line.endswith(f"pip install {package}")
    assert not (tmp_path / "run").exists()


def test_a_logger_of_the_users_takes_the_place_of_tensorboard(fit: Fit, flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    named = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'own'}"]
    assert fit(run, *flags, *named) == 0
    (log,) = tmp_path.glob("own/**/metrics.csv")
    with log.open() as stream:
        theirs = [float(row["train_loss"]) for row in csv.DictReader(stream) if row["train_loss"]]
    assert theirs == pytest.approx([value for _, value in logged_to_csv(run)["train_loss"]])
    told = yaml.safe_load((log.parent / "hparams.yaml").read_text())
    assert told["model"]["lora"]["r"] == 4
    assert not (run / "tensorboard").exists()
