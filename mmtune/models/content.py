"""A hash of weights by all of their bits, which is cheap where they are: on a GPU no byte leaves it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

_WORDS = 2**22  # of 8 bytes, hashed at a time
_MASK = 2**64 - 1


def hash_weights(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash that changes with any bit of any tensor, with its name, shape and dtype, and not with its device.

    Every word of 8 bytes is multiplied by an odd number of its place and all are added up, modulo 2^64: one word that
    changes always changes the sum, and several do but for 1 in 2^60 or so. That tells weights apart which were trained
    apart; it is no proof against somebody who looks for two that agree.

    Args:
        tensors: names and tensors; those on the meta device count by shape alone.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(_sum(tensor.detach()).to_bytes(8, "little"))
    return digest.hexdigest()


def _sum(tensor: torch.Tensor) -> int:
    data = tensor.contiguous().flatten().view(torch.uint8)
    if rest := len(data) % 8:
        data = torch.cat([data, data.new_zeros(8 - rest)])
    if data.storage_offset() % 8:
        data = data.clone()
    words = data.view(torch.int64)
    total = 0
    for start in range(0, len(words), _WORDS):
        some = words[start : start + _WORDS]
        places = torch.arange(start, start + len(some), device=some.device)
        places = places * 0x1F83D9ABFB41BD6B  # spreads neighbouring places over all bits
        total += int((some * ((places ^ (places >> 29)) | 1)).sum())
    return total & _MASK
