"""Early end of a run: a loss that is not finite, SIGTERM, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.training.checkpoint_io import LAST
from mmtune.training.distributed import of_every_process
from mmtune.training.sharding import local_part

_LISTED = 4


class SoundLoss(pl.Callback):
    """Stop the run before an optimizer step whose loss or gradients are not finite.

    The check runs once per step, when the gradients of all packs and processes are complete. So no process stops while
    another waits for it, and no GPU waits for the result between the packs.
    """

    def __init__(self) -> None:
        self._rows: tuple[str, ...] = ()
        self._packs: list[tuple[torch.Tensor, tuple[str, ...]]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Store the rows of the batch whose loss is computed next."""
        self._rows = batch.where

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Store the loss, without waiting for its value."""
        self._packs.append((loss.detach(), self._rows))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check that the step's losses and gradients are finite.

        Raises:
            UserError: one of them is infinite or not a number.
        """
        packs, self._packs = self._packs, []
        scaled = trainer.precision == "16-mixed"  # there, the scaler handles gradients that are not finite
        checked = [torch.stack([loss for loss, _ in packs]).float()]
        if not scaled:
            checked.append(_norm_of_gradients(pl_module)[None].to(checked[0].device))
        finite: list[bool] = torch.isfinite(torch.cat(checked)).tolist()  # the only wait for the device
        bad = [pack for pack, sound in zip(packs, finite, strict=False) if not sound]
        fault = ""
        if bad:
            fault = f"the loss is {float(bad[0][0])} in a pack of {_listed([row for _, rows in bad for row in rows])}"
        elif not all(finite):
            fault = f"the gradients are not finite in a step of {_listed([row for _, rows in packs for row in rows])}"
        if trainer.strategy.reduce_boolean_decision(not fault):
            return
        # gradients are summed over processes; if a loss is the cause, its message is more specific
        fault = min(filter(None, of_every_process(fault)), key=lambda text: text.startswith("the gradients"))
        _all_leave(
            trainer,
            UserError(
                f"step {trainer.global_step}: {fault}; the step was not taken and the last checkpoint stays; look at "
                "these rows, or train again in another --out with a lower --model.learning_rate, a longer "
                "--model.warmup or --trainer.gradient_clip_val 1.0"
            ),
        )


class Stopped(SIGTERMException):
    """Exception after a signal ended the run and its last checkpoint was saved.

    Attributes:
        number: number of the signal: SIGTERM, also in place of SLURM's own signal, or SIGINT.
        step: number of optimizer steps taken.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self.number, self.step = number, step


class StopOnSignal(pl.Callback):
    """Finish the optimizer step, save last.ckpt and stop on SIGTERM or Ctrl-C; a second Ctrl-C stops at once.

    Lightning's own handler stops after any batch, also between two batches of a step, saves nothing, and communicates
    with the other processes at any point of their work. So it is replaced during training. The processes exchange the
    state once per step, because a signal may reach only one of them, or each at a different step. If SLURM restarts the
    job after a signal of its own (Lightning's automatic requeueing), that signal is handled in the same way.

    Attributes:
        received: the signal that was received, or None.
    """

    def __init__(self, run: Path) -> None:
        self.checkpoint = run / "checkpoints" / LAST
        self.received: int | None = None
        self._speaks = True
        self._requeue_on: int | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers; Lightning restores the previous ones at the end of training."""
        self._step, self._speaks = trainer.global_step, trainer.is_global_zero
        signal.signal(signal.SIGTERM, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it may be ignored, by the shell
            signal.signal(signal.SIGINT, self._interrupt)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_on = environment.requeue_signal or signal.SIGUSR1
            signal.signal(self._requeue_on, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received != self._requeue_on or self.received is None:  # SLURM may send SIGTERM after its own
            self.received = number

    def _interrupt(self, number: int, frame: Any) -> None:
        """Store the first Ctrl-C, and print a message.

        Raises:
            KeyboardInterrupt: it is not the first.
        """
        if self.received == number:
            raise KeyboardInterrupt
        self._note(number, frame)
        if self._speaks:  # without buffers, which may be half filled when the signal arrives
            os.write(2, b"\nmmtune: the step is finished and saved; Ctrl-C again stops at once\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Save a checkpoint and stop after an optimizer step, if any process has received a signal.

        Raises:
            Stopped: after the checkpoint was saved.
        """
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        trainer.save_checkpoint(self.checkpoint, weights_only=False)
        if self.received is not None and self.received == self._requeue_on and trainer.is_global_zero:
            _requeue()
        interrupted = signal.SIGINT in of_every_process(self.received)
        _all_leave(trainer, Stopped(signal.SIGINT if interrupted else signal.SIGTERM, trainer.global_step))


def received_signal(trainer: pl.Trainer) -> int | None:
    """Return SIGTERM or SIGINT if a signal was received when no step was left, in a run that completed; else None."""
    received = next(c.received for c in trainer.callbacks if isinstance(c, StopOnSignal))  # type: ignore[attr-defined]
    return received if received in (None, signal.SIGINT) else signal.SIGTERM


def _all_leave(trainer: pl.Trainer, reason: BaseException) -> NoReturn:
    """Raise an exception in the first process, and end the others silently.

    The others must not end with an error, because Lightning would then kill the first process at any point.
    """
    raise reason if trainer.is_global_zero else SystemExit(0)


def _requeue() -> None:
    """Ask SLURM to start this job again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=False)


def _norm_of_gradients(module: torch.nn.Module) -> torch.Tensor:
    """Return the norm of all gradients of this process: float32, no dimensions; 0 without gradients."""
    gradients = [local_part(p.grad) for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).float()


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return ", ".join(rows[:_LISTED]) + more
