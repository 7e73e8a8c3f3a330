"""Attention kernels of a GPU: which of them can take a pack, and which are left out."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

varlen_attn: Any
FLASH_TAKES: frozenset[str] = frozenset()
try:
    from torch.nn.attention.varlen import varlen_attn

    FLASH_TAKES = frozenset(inspect.signature(varlen_attn).parameters)
    if not {"scale", "window_size"} <= FLASH_TAKES:
        varlen_attn = None  # torch 2.10
except ImportError:  # torch before 2.10
    varlen_attn = None

_HALF = (torch.float16, torch.bfloat16)
_WIDEST = 256  # of a head
_WIDEST_TRAINED = 192  # on GPUs of compute capability 8.6, 8.9 and 12, whose shared memory is smaller


def takes_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether FlashAttention computes these tensors [1, heads, tokens, width], forward and backward."""
    width = value.shape[3]
    if varlen_attn is None or not value.is_cuda or value.dtype not in _HALF:
        return False
    if query.shape[3] != width or key.shape[3] != width or width % 8 or width > _WIDEST:
        return False
    capability = torch.cuda.get_device_capability(value.device)
    if capability < (8, 0):
        return False
    trained = any(tensor.requires_grad for tensor in (query, key, value))
    return width <= _WIDEST_TRAINED or not trained or capability in ((8, 0), (9, 0), (10, 0))


def without_cudnn(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Leave cuDNN out of torch's attention on a GPU: it compiles a plan for each new length.

    On an H100, the first pass over 33 documents of different lengths took 8.3 s with it, and 0.1 s without.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
