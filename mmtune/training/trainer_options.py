"""Checks of options of Lightning's trainer that a run does not support."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging

from mmtune.common.errors import UserError


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse unsupported options, before anything is created.

    Raises:
        UserError: an option is out of range, or is not supported.
    """
    _check_ranges(options)
    _check_hardware(options)
    if overfit := options.get("overfit_batches"):
        raise UserError(
            f"--trainer.overfit_batches {overfit}: packs are drawn anew in each epoch, and Lightning would put another "
            "loader in their place; to learn a few rows by heart, give --data.train.total 16 and more "
            "--trainer.max_epochs"
        )
    if (folder := options.get("default_root_dir")) is not None:
        raise UserError(f"--trainer.default_root_dir {folder}: the folder of a run is --out; leave it out")
    if options.get("barebones"):
        raise UserError(
            "--trainer.barebones true: leaves out what a run is made of (checkpoints, log and ledger); leave it out"
        )
    if (precision := str(options.get("precision"))) in ("bf16-true", "16-true"):
        raise UserError(
            f"--trainer.precision {precision}: small steps are lost in trained weights of 16 bits; give "
            f"{precision.replace('true', 'mixed')}, and --model.dtype for what is frozen"
        )
    _check_callbacks(options.get("callbacks") or [])


def _check_callbacks(callbacks: Iterable[Any]) -> None:
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(
                "--trainer.callbacks GradientAccumulationScheduler: a step's tokens are counted ahead, for one number "
                "of packs; give --trainer.accumulate_grad_batches"
            )
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            raise UserError(
                f"--trainer.callbacks {type(callback).__name__}: a run that goes on from a checkpoint would end with "
                "other weights, for the average is not in it; leave it out"
            )


def _check_ranges(options: Mapping[str, Any]) -> None:
    for name, least in (
        ("accumulate_grad_batches", 1),
        ("log_every_n_steps", 1),
        ("check_val_every_n_epoch", 1),
        ("max_epochs", -1),
        ("max_steps", -1),
        ("gradient_clip_val", 0),
        ("reload_dataloaders_every_n_epochs", 0),
    ):
        value = options.get(name)
        if value is not None and value < least:
            raise UserError(f"--trainer.{name} {value}: must be at least {least}")
    for name in ("limit_train_batches", "val_check_interval"):
        if options.get(name) == 0:
            raise UserError(f"--trainer.{name} 0: must be above 0; give more, or leave it out")


def _check_hardware(options: Mapping[str, Any]) -> None:
    accelerator = options.get("accelerator")
    if accelerator in ("cuda", "gpu") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError(
            f"--trainer.accelerator {accelerator}: torch {torch.__version__} finds no GPU here; give "
            "--trainer.accelerator cpu, or see to the driver and a torch that is built for it"
        )
