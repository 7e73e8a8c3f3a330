"""What a run must have in common with the checkpoint that it goes on from, and what may change."""

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

MEASURED = (".feature_mean", ".feature_std")  # not trained, and yet kept
KEY = "settings"


class ResumableModule(LightningModule):
    """LightningModule whose checkpoints say what a resumed run must have in common with them.

    Attributes:
        spec: what the model is made of.
        stage: what is trained.
        objective: the loss it is trained with.
        optimizer_name, learning_rate, projector_learning_rate, warmup, weight_decay: as they were asked for.
        dtype_of_frozen: in which the weights that are not trained are held.
        model: None until it is built.
        new_schedule: whether a resumed run may have another course of the learning rate.
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
        """Hash of the weights that are not trained; None where the strategy holds them in parts."""
        return frozen_hash(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: a 7B model's adapters, not its 13 GB. Say what it belongs to."""
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
    """What decides the weights that a run ends with, beside the data and the place in it, which are compared apart.

    Returns:
        fixed: by flag, what no resumed run may change: the states of the optimizer belong to it, or config.yaml would
            tell of a run that never was. schedule: by flag, what the course of the learning rate follows from.
            frozen: a hash of the weights that are not trained; None where processes hold them in parts.
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
    vision = asdict(spec.vision) if spec.vision else {}  # names of weights may change, as where a folder was moved
    fixed |= {f"--model.vision.{n}": value for n, value in vision.items() if n not in ("tower", "weights")}
    schedule = {"--trainer.max_epochs": trainer.max_epochs, "--trainer.max_steps": trainer.max_steps}
    return {"fixed": fixed, "schedule": schedule, "frozen": module.frozen_hash}


def check(checkpoint: dict[str, Any], module: ResumableModule) -> None:
    """Refuse a checkpoint of another run; without this, what is missing from it would go unnoticed.

    Raises:
        UserError: it is of another program, or a setting, the parts that are trained or the frozen weights differ.
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
    """A hash of the weights that are not trained; None where the strategy holds them in parts."""
    if not _holds_all(module) or module.model is None:
        return None
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    state = module.model.state_dict()
    return hash_weights((n, t) for n, t in state.items() if n not in trained and not n.endswith(MEASURED))


def _check_parts(checkpoint: dict[str, Any], module: ResumableModule) -> None:
    if not _holds_all(module):
        return  # the others hold the weights in parts, and compare them themselves
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
    """What differs, with both values; "" if nothing does."""
    flags = sorted(then.keys() | now.keys())
    told = [f"{flag} {then.get(flag)}, not {now.get(flag)}" for flag in flags if then.get(flag) != now.get(flag)]
    return "; ".join(told)
