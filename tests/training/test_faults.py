"""What goes wrong in the middle of training: losses that are no numbers, memory, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.training.module import InstructionTuning

Fit = Callable[..., int]
Same = Callable[[Path, Path], None]
Read = Callable[[Path, str], Any]

# breaks the loss of one row, in the process that sees it; run in place of mmtune.cli.main
BROKEN = """
import sys
import mmtune.training.module as module
from mmtune.cli.main import main

loss = module.InstructionTuning._loss
module.InstructionTuning._loss = lambda self, batch: loss(self, batch) * (
    float("nan") if any(w.endswith("row 9") for w in batch.where) else 1.0
)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def flags(text_rows: Path, lora_flags: list[str]) -> list[str]:
    return [
        f"--data.train.text=[{text_rows}]",
        "--data.pack_rows=1",
        "--trainer.accumulate_grad_batches=2",
        *lora_flags,
    ]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune: error:")]
    return error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_step(
    value: float, fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In the first of two batches of a step, so that the second comes before anything is noticed."""
    training_step, batches = InstructionTuning.training_step, []

    def broken(module: InstructionTuning, batch: Any, batch_idx: int) -> torch.Tensor:
        batches.append(batch.where)
        return training_step(module, batch, batch_idx) * (value if batch_idx == 6 else 1.0)

    monkeypatch.setattr(InstructionTuning, "training_step", broken)
    assert fit(tmp_path / "run", *flags, "--checkpoint_every=1") == 2
    error = error_of(capsys)
    assert "step 3: the loss is " in error
    assert batches[6][0] in error
    assert batches[7][0] not in error
    assert "--model.learning_rate" in error
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint["state_dict"].values())
    assert not (tmp_path / "run" / "model").exists()


def test_gradients_that_are_no_numbers_stop_before_the_step(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(module: InstructionTuning) -> None:
        next(p for p in module.parameters() if p.grad is not None).grad[0, 0] = torch.inf  # type: ignore[index]

    monkeypatch.setattr(InstructionTuning, "on_after_backward", broken)
    assert fit(tmp_path / "run", *flags, "--checkpoint_every=1") == 2
    assert "step 0: the gradients are not finite in a step of " in error_of(capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_bad_loss_in_one_of_two_processes_stops_both(base_flags: list[str], flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    command = [sys.executable, str(script), "fit", *base_flags, *flags, f"--out={tmp_path / 'run'}"]
    command += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    [error] = [line for line in done.stderr.splitlines() if line.startswith("mmtune: error:")]
    assert "the loss is nan in a pack of " in error
    assert "row 9" in error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_change(
    error: RuntimeError, fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(InstructionTuning, "training_step", fail)
    assert fit(tmp_path / "run", *flags) == 2
    message = error_of(capsys)
    for flag in ("--data.pack_tokens", "--model.gradient_checkpointing", "--model.quantise nf4"):
        assert flag in message


def test_an_error_of_ours_is_not_taken_for_the_users(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(InstructionTuning, "training_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path / "run", *flags)


def environment(**more: str) -> dict[str, str]:
    """One thread, for sums depend on how many there are."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **more}


def start(run: Path, *flags: str, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmtune.cli.main", "fit", f"--out={run}", *flags]
    return subprocess.Popen(command, env=environment(**more), stderr=subprocess.PIPE, text=True, start_new_session=True)


def rows_of(run: Path) -> int:
    return len((run / "metrics.csv").read_text().splitlines()) if (run / "metrics.csv").exists() else 0


def terminate(process: subprocess.Popen[str], run: Path, number: int = signal.SIGTERM, *, to_all: bool = False) -> str:
    """Send the signal once there is a new row of metrics; the stderr."""
    deadline, before = time.monotonic() + 120, rows_of(run)
    while rows_of(run) <= before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    (os.killpg if to_all else os.kill)(process.pid, number)
    return process.communicate(timeout=120)[1]


def assert_same_run(run: Path, other: Path, read_run: Read, same_weights: Same) -> None:
    same_weights(run, other)
    counted = ("steps", "samples", "tokens", "flops")
    ours, theirs = (read_run(one, "ledger.json") for one in (run, other))
    assert [ours[name] for name in counted] == [theirs[name] for name in counted]
    columns = [[line.split(",")[:2] for line in (one / "metrics.csv").read_text().splitlines()] for one in (run, other)]
    assert columns[0] == columns[1]


@pytest.fixture
def long(base_flags: list[str], flags: list[str]) -> list[str]:
    """Eighty steps, without checkpoints on the way."""
    return [*base_flags, *flags, "--trainer.max_epochs=4", "--trainer.gradient_clip_val=1.0", "--checkpoint_every=1000"]


def test_sigterm_finishes_the_step_saves_and_goes_on_exactly(
    long: list[str], tmp_path: Path, read_run: Read, same_weights: Same
) -> None:
    whole = start(tmp_path / "whole", *long)
    assert whole.wait(timeout=120) == 0, whole.communicate()[1]
    run = tmp_path / "run"
    process = start(run, *long)
    error = terminate(process, run)
    assert process.returncode == 143, error
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    step = checkpoint["global_step"]
    assert 0 < step < 80
    assert error.splitlines() == [f"mmtune: stopped by SIGTERM after step {step}; the same command goes on from here"]
    assert checkpoint["place_in_data"]["delivered"] % 2 == 0  # no batch between two batches of a step
    assert not (run / "model").exists()
    interrupted = start(run, *long)
    said = terminate(interrupted, run, signal.SIGINT).splitlines()
    assert interrupted.returncode == 130, said
    later = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step < later < 80
    assert said == [
        f"Resuming {run} after step {step} from its last checkpoint.",
        "",
        "mmtune: the step is finished and saved; Ctrl-C again stops at once",
        f"mmtune: stopped by Ctrl-C after step {later}; the same command goes on from here",
    ]
    again = start(run, *long)
    assert again.wait(timeout=120) == 0, again.communicate()[1]
    assert_same_run(run, tmp_path / "whole", read_run, same_weights)


@pytest.mark.parametrize("to", ["first", "all"])
def test_sigterm_stops_two_processes_at_the_same_step(
    to: str, long: list[str], tmp_path: Path, read_run: Read, same_weights: Same
) -> None:
    flags = [*long, "--trainer.strategy=ddp", "--trainer.devices=2"]
    run = tmp_path / "run"
    process = start(run, *flags)
    error = terminate(process, run, to_all=to == "all")
    assert process.returncode == 143, error
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert [line for line in error.splitlines() if line.startswith("mmtune:")] == [
        f"mmtune: stopped by SIGTERM after step {step}; the same command goes on from here"
    ]
    again = start(run, *flags)
    assert again.wait(timeout=120) == 0, again.communicate()[1]
    if to == "all":
        return
    whole = start(tmp_path / "whole", *flags)
    assert whole.wait(timeout=120) == 0, whole.communicate()[1]
    assert_same_run(run, tmp_path / "whole", read_run, same_weights)


def test_slurms_signal_saves_and_asks_for_another_turn(long: list[str], tmp_path: Path) -> None:
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    script.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "tune", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODEID": "0"}
    process = start(tmp_path / "run", *long, **slurm, PATH=f"{script.parent}:{os.environ['PATH']}")
    error = terminate(process, tmp_path / "run", signal.SIGUSR1)
    assert process.returncode == 143, error
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))
