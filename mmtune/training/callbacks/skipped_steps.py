"""Optimizer steps that the loss scaling of float16 skips."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import torch

from mmtune.data.collate import PackedBatch
from mmtune.training.module import InstructionTuning


class SkippedSteps(pl.Callback):
    """Count the steps that change no weight, because a gradient overflowed in float16 (`--trainer.precision 16-mixed`).

    The scaler then lowers its factor, and the next step is taken with that one. Lightning counts such a step as taken.

    Attributes:
        count: skipped steps of this and all earlier parts of the run.
    """

    def __init__(self) -> None:
        self.count = 0
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Observe the optimizers: a skipped step does not call them."""
        assert isinstance(pl_module, InstructionTuning)
        self._seen = trainer.global_step

        def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            pl_module.step_taken = True

        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            pl_module.scales_loss = True
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Count the step, if it was skipped."""
        assert isinstance(pl_module, InstructionTuning)
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.count += not pl_module.step_taken

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print how many steps were skipped, if any were."""
        if self.count and trainer.is_global_zero:
            print(
                f"mmtune: note: {self.count} of {trainer.global_step} steps changed no weight, for gradients overflowed"
                " in float16; the learning rate stayed in them; --trainer.precision bf16-mixed does not overflow",
                file=sys.stderr,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the count, for the checkpoint."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.count = state_dict["count"]


def skipped_steps(trainer: pl.Trainer) -> int:
    """Return the skipped steps of a run so far."""
    return sum(callback.count for callback in trainer.callbacks if isinstance(callback, SkippedSteps))  # type: ignore[attr-defined]
