"""What ends a run before its time: a loss that is no number, SIGTERM, and Ctrl-C."""

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
    """Stops the run before an optimizer step whose loss or gradients are no finite numbers.

    It is asked once a step, when the gradients of all its packs and processes are together, so that no process stops
    while another waits for it, and no GPU waits for the answer in between.
    """

    def __init__(self) -> None:
        self._rows: tuple[str, ...] = ()
        self._packs: list[tuple[torch.Tensor, tuple[str, ...]]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Note whose loss comes next."""
        self._rows = batch.where

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Keep the loss, without waiting for it."""
        self._packs.append((loss.detach(), self._rows))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the step's losses and gradients.

        Raises:
            UserError: one of them is infinite or not a number.
        """
        packs, self._packs = self._packs, []
        bad = [(loss, rows) for loss, rows in packs if not torch.isfinite(loss)]
        fault = ""
        if bad:
            fault = f"the loss is {float(bad[0][0])} in a pack of {_listed([row for _, rows in bad for row in rows])}"
        elif trainer.precision != "16-mixed" and not _finite_gradients(pl_module):  # there, the scaler sees to it
            fault = f"the gradients are not finite in a step of {_listed([row for _, rows in packs for row in rows])}"
        if trainer.strategy.reduce_boolean_decision(not fault):
            return
        # gradients are summed over processes; where a loss is to blame, it says more
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
    """A signal ended the run, and its last checkpoint is saved.

    Attributes:
        number: of the signal: SIGTERM, also in place of SLURM's own, or SIGINT.
        step: how many optimizer steps were taken.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self.number, self.step = number, step


class StopOnSignal(pl.Callback):
    """On SIGTERM and Ctrl-C, finishes the optimizer step, saves last.ckpt and leaves; a second Ctrl-C leaves at once.

    Lightning's own handler stops after a batch, be it between two batches of a step, saves nothing, and speaks to the
    other processes in the middle of whatever they do. So its place is taken while training goes on, and the processes
    ask each other once a step, for a signal may reach only one of them, or each at another step. Where SLURM is to
    start the job again after a signal of its own (Lightning's automatic requeueing), that one is treated the same.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self, run: Path) -> None:
        self.checkpoint = run / "checkpoints" / LAST
        self.received: int | None = None
        self._speaks = True
        self._requeue_on: int | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over; Lightning puts back what there was before it when the trainer is done."""
        self._step, self._speaks = trainer.global_step, trainer.is_global_zero
        signal.signal(signal.SIGTERM, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the shell, say, has it ignored
            signal.signal(signal.SIGINT, self._interrupt)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_on = environment.requeue_signal or signal.SIGUSR1
            signal.signal(self._requeue_on, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received != self._requeue_on or self.received is None:  # SLURM may send SIGTERM after its own
            self.received = number

    def _interrupt(self, number: int, frame: Any) -> None:
        """
        Raises:
            KeyboardInterrupt: it is not the first.
        """
        if self.received == number:
            raise KeyboardInterrupt
        self._note(number, frame)
        if self._speaks:  # past the buffers, which a signal may meet half filled
            os.write(2, b"\nmmtune: the step is finished and saved; Ctrl-C again stops at once\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """After the last batch of an optimizer step, leave if any process was told to.

        Raises:
            Stopped: the checkpoint is saved.
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
    """SIGTERM or SIGINT, if it came in a run that ended well: when no step was left."""
    received = next(c.received for c in trainer.callbacks if isinstance(c, StopOnSignal))  # type: ignore[attr-defined]
    return received if received in (None, signal.SIGINT) else signal.SIGTERM


def _all_leave(trainer: pl.Trainer, reason: BaseException) -> NoReturn:
    """Raise in the first process, and let the others end without a word.

    They must not end with an error, at which Lightning kills the first process wherever it is.
    """
    raise reason if trainer.is_global_zero else SystemExit(0)


def _requeue() -> None:
    """Ask SLURM to start this job again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=False)


def _finite_gradients(module: torch.nn.Module) -> bool:
    gradients = [local_part(p.grad) for p in module.parameters() if p.grad is not None]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return ", ".join(rows[:_LISTED]) + more
