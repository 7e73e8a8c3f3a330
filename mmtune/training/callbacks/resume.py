"""Callbacks for exact resuming, and for saving the model at the end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from mmtune.common.files import write_json
from mmtune.training.callbacks.metrics_csv import MetricsCsv
from mmtune.training.distributed import of_every_process, process_number
from mmtune.training.module import STEP_METRICS, InstructionTuning
from mmtune.training.sharding import gather_trained


class RandomStates(pl.Callback):
    """Save and restore the random states and the position in the data, so that a run resumes exactly.

    Lightning restores the state of a data loader only if it creates the loader after it has read the checkpoint. It
    creates the loader before if the learning rate schedule needs the number of steps, as it does here.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._place: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the position in the data, and the step's metrics, which are logged after the checkpoint is saved."""
        checkpoint["place_in_data"] = trainer.train_dataloader.state_dict()
        metrics = trainer.callback_metrics
        logged = {n: float(value) for n, value in metrics.items() if n.startswith(STEP_METRICS)}
        if logged and not trainer.global_step % trainer.log_every_n_steps:
            row = {"step": trainer.global_step - 1, **logged, "epoch": trainer.current_epoch}
            checkpoint["last_metrics"] = row

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the saved position in the data, and keep it until the data loader exists."""
        self._place = checkpoint.get("place_in_data")
        for log in trainer.loggers:
            if isinstance(log, MetricsCsv):
                log.saved = checkpoint.get("last_metrics")
        for callback in trainer.checkpoint_callbacks:
            # it does not restore the step that it saved last, and would save this step again after the first batch,
            # between two batches whose gradients are accumulated
            callback._last_global_step_saved = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the position in the data, before the first batch is loaded."""
        if self._place is not None:
            trainer.train_dataloader.load_state_dict(self._place)
            self._place = None

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of every process; they differ, because each process computes its own packs."""
        python, (name, keys, position, has_gauss, gauss) = random.getstate(), np.random.get_state()
        own = {
            "python": [python[0], list(python[1]), python[2]],
            "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }
        return {"processes": of_every_process(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states until the first step, because code before it draws random numbers, too."""
        states = state_dict["processes"]
        self._restored = states[process_number() % len(states)]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the random states before the first step of a resumed run."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"].cpu())


class SaveModel(pl.Callback):
    """Write `RUN/data.json` when training starts, and `RUN/model/` when it ends."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record of the training data to `RUN/data.json`."""
        if trainer.is_global_zero:
            write_json(self.run / "data.json", trainer.datamodule.record)  # type: ignore[attr-defined]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained weights after the last checkpoint, which needs the parts of a sharded model."""
        assert isinstance(pl_module, InstructionTuning)
        assert pl_module.model is not None
        if trainer.interrupted or trainer.fast_dev_run:
            return
        gather_trained(pl_module.model)
        if trainer.is_global_zero:
            pl_module.model.save_pretrained(self.run / "model")
