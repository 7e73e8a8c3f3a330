"""Compatibility checks between a run and the checkpoint that it resumes from."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.content import hash_weights
from mmtune.models.spec import ModelSpec
from mmtune.models.vlm import Stage
from mmtune.training.checkpoint_io import differences
from mmtune.training.objectives.objective import Objective
from mmtune.training.optimizers import OptimizerName

MEASURED = (".feature_mean", ".feature_std")  # not trained, but saved
KEY = "settings"


class ResumableModule(LightningModule):
    """LightningModule whose checkpoints contain the settings that a resumed run must share.

    Attributes:
        spec: specification of the model.
        stage: the training stage: align or tune.
        objective: the loss of the training.
        optimizer_name, learning_rate, projector_learning_rate, warmup, weight_decay: as configured.
        dtype_of_frozen: type of the frozen weights.
        model: None until it is built.
        new_schedule: whether a resumed run may have a different learning rate schedule.
    """

    spec: ModelSpec
    stage: Stage
    objective: Objective
    optimizer_name: OptimizerName
    learning_rate: float
    projector_learning_rate: float
    warmup: float
    weight_decay: float
    dtype_of_frozen: torch.dtype
    model: VisionLanguageModel | None
    new_schedule: bool

    @functools.cached_property
    def frozen_hash(self) -> str | None:
        """Hash of the frozen weights; None if the strategy holds them in parts."""
        return frozen_hash(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reduce the checkpoint to trained weights and measured statistics, and add the settings of the run.

        Of a 7B model, for example, the adapters are kept, and not its 13 GB.
        """
        checkpoint[KEY] = settings(self)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {
            name: tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name in trained or name.endswith(MEASURED)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            UserError: see `check`.
        """
        check(checkpoint, self)


def settings(module: ResumableModule) -> dict[str, Any]:
    """Return the settings that determine the final weights of a run, except the data and the position in it.

    The data and the position are compared separately.

    Returns:
        fixed: by flag, the settings that a resumed run must not change: the optimizer states depend on them, or
            config.yaml would describe a run that did not take place. schedule: by flag, the settings that determine the
            learning rate schedule. frozen: a hash of the frozen weights; None if processes hold them in parts.
    """
    trainer, spec = module.trainer, module.spec
    fixed = {
        "objective": module.objective.name,
        "--model.stage": module.stage,
        "--model.optimizer": module.optimizer_name,
        "--model.learning_rate": module.learning_rate,
        "--model.projector_learning_rate": module.projector_learning_rate,
        "--model.warmup": module.warmup,
        "--model.weight_decay": module.weight_decay,
        "--model.projector": spec.projector,
        "--model.quantise": spec.quantise,
        "--model.dtype": str(module.dtype_of_frozen).removeprefix("torch."),
        "--model.seed": spec.seed,
        "--seed_everything": os.environ.get("PL_GLOBAL_SEED"),
        "--trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "processes": trainer.world_size,
        "--trainer.precision": trainer.precision,
        "--trainer.gradient_clip_val": trainer.gradient_clip_val,
        "--trainer.gradient_clip_algorithm": getattr(trainer.gradient_clip_algorithm, "value", None),
        "--trainer.limit_train_batches": trainer.limit_train_batches,
        "--trainer.overfit_batches": trainer.overfit_batches,
    }
    fixed |= {f"--model.lora.{name}": value for name, value in (asdict(spec.lora) if spec.lora else {}).items()}
    vision = asdict(spec.vision) if spec.vision else {}  # names of weights may change, as when a folder was moved
    fixed |= {f"--model.vision.{n}": value for n, value in vision.items() if n not in ("tower", "weights")}
    schedule = {"--trainer.max_epochs": trainer.max_epochs, "--trainer.max_steps": trainer.max_steps}
    return {"fixed": fixed, "schedule": schedule, "frozen": module.frozen_hash}


def check(checkpoint: dict[str, Any], module: ResumableModule) -> None:
    """Refuse a checkpoint of another run; without this check, missing weights would not be noticed.

    Raises:
        UserError: it is of another program, or a setting, the trained parts or the frozen weights differ.
    """
    then = checkpoint.get(KEY)
    if not isinstance(then, dict) or then.keys() != {"fixed", "schedule", "frozen"}:
        raise UserError(
            "--ckpt_path: the checkpoint of another program, or of another version of mmtune; give that of a run "
            "of this one, RUN/checkpoints/last.ckpt"
        )
    _check_parts(checkpoint, module)
    now = settings(module)
    if changed := _changed(then["fixed"], now["fixed"]):
        raise UserError(f"the run to resume began with {changed}; give that, or another --out")
    if changed := _changed(then["schedule"], now["schedule"]):
        if not module.new_schedule:
            raise UserError(
                f"the run to resume began with {changed}; the learning rate follows from it and would jump: give that, "
                "or --new_schedule true to let it"
            )
        rank_zero_only(print)(
            f"mmtune: warning: the run began with {changed}; the learning rate jumps to the new schedule",
            file=sys.stderr,
        )
    if None not in (then["frozen"], now["frozen"]) and then["frozen"] != now["frozen"]:
        raise UserError(
            "the run to resume began with other frozen weights: the language model or the tower was changed in its "
            "place; put back what it was, or give another --out"
        )


def frozen_hash(module: ResumableModule) -> str | None:
    """Return a hash of the frozen weights; None if the strategy holds them in parts, or there is no model."""
    if not _holds_all(module) or module.model is None:
        return None
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    state = module.model.state_dict()
    return hash_weights((n, t) for n, t in state.items() if n not in trained and not n.endswith(MEASURED))


def _check_parts(checkpoint: dict[str, Any], module: ResumableModule) -> None:
    if not _holds_all(module):
        return  # other strategies hold the weights in parts, and compare them themselves
    own = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    saved = {name: t.shape for name, t in checkpoint["state_dict"].items() if not name.endswith(MEASURED)}
    if own != saved:
        raise UserError(
            f"the run to resume trained another model, or other parts of it: {differences(saved, own)}; give the "
            "--model options that it began with, or another --out"
        )


def _holds_all(module: ResumableModule) -> bool:
    return type(module.trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)


def _changed(then: dict[str, Any], now: dict[str, Any]) -> str:
    """List the settings that differ, with both values; "" if none does."""
    flags = sorted(then.keys() | now.keys())
    told = [f"{flag} {then.get(flag)}, not {now.get(flag)}" for flag in flags if then.get(flag) != now.get(flag)]
    return "; ".join(told)
