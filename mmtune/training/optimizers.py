"""Optimizers: AdamW, and the 8-bit AdamW of bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from mmtune.common.errors import UserError

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


def check_optimizer(name: OptimizerName, device: torch.device) -> None:
    """Check that an optimizer can run on a device.

    Raises:
        UserError: bitsandbytes is not installed, or the optimizer pages its states and the device is no CUDA GPU.
    """
    if name == "adamw":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--model.optimizer {name}: needs bitsandbytes; pip install bitsandbytes")
    if name == "paged_adamw_8bit" and device.type != "cuda":
        raise UserError(
            f"--model.optimizer {name}: moves states between a GPU's memory and the host's, and this run is on "
            f"{device.type}; give adamw_8bit"
        )


def build_optimizer(name: OptimizerName, groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """Create AdamW with betas of 0.9 and 0.999 over parameter groups with their own learning rates.

    The 8-bit kinds keep tensors of fewer than 4,096 numbers in 32 bits.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    import bitsandbytes

    kind = bitsandbytes.optim.AdamW8bit if name == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, weight_decay=weight_decay)
    return optimizer
