"""What happens around the steps: exact resuming, and saving the model at the end."""

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
    """Keeps the random number generators and the place in the data, so that all goes on as if nothing had happened.

    Lightning restores a loader's state only if it makes the loader after it has read the checkpoint, and it makes it
    before where the schedule asks for the number of steps, as ours does.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._place: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the place in the data, and the step's metrics, which are logged after the checkpoint is saved."""
        checkpoint["place_in_data"] = trainer.train_dataloader.state_dict()
        metrics = trainer.callback_metrics
        logged = {n: float(value) for n, value in metrics.items() if n.startswith(STEP_METRICS)}
        if logged and not trainer.global_step % trainer.log_every_n_steps:
            row = {"step": trainer.global_step - 1, **logged, "epoch": trainer.current_epoch}
            checkpoint["last_metrics"] = row

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold the place until there is a loader."""
        self._place = checkpoint.get("place_in_data")
        for log in trainer.loggers:
            if isinstance(log, MetricsCsv):
                log.saved = checkpoint.get("last_metrics")
        for callback in trainer.checkpoint_callbacks:
            # it forgets what it saved, and would save the same step again after the first batch, between two
            # batches whose gradients belong together
            callback._last_global_step_saved = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go to the place, before the first batch is asked for."""
        if self._place is not None:
            trainer.train_dataloader.load_state_dict(self._place)
            self._place = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states in every process, for each has drawn as many numbers as its own packs asked for."""
        python, (name, keys, position, has_gauss, gauss) = random.getstate(), np.random.get_state()
        own = {
            "python": [python[0], list(python[1]), python[2]],
            "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }
        return {"processes": of_every_process(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the states until the first step: what happens before it draws numbers too."""
        states = state_dict["processes"]
        self._restored = states[process_number() % len(states)]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the states back before the first step after a resume."""
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
    """Writes `RUN/model/` and `RUN/data.json` when training ends."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write down what is trained on."""
        if trainer.is_global_zero:
            write_json(self.run / "data.json", trainer.datamodule.record)  # type: ignore[attr-defined]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was trained, after the last checkpoint, to which the parts of a divided model belong."""
        assert isinstance(pl_module, InstructionTuning)
        assert pl_module.model is not None
        if trainer.interrupted or trainer.fast_dev_run:
            return
        gather_trained(pl_module.model)
        if trainer.is_global_zero:
            pl_module.model.save_pretrained(self.run / "model")
