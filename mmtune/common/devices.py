"""Copies of small host data to a device, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def on_device(values: torch.Tensor | np.ndarray | Sequence[float], device: torch.device) -> torch.Tensor:
    """Copy values to a device; to a GPU, from page-locked memory, while the host goes on.

    Args:
        values: a tensor or an array on the host, or numbers. Integers become int64, other numbers float32.
        device: where the copy is to be.
    """
    host = values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
