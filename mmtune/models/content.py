"""Hash of weights by all of their bits, computed cheaply on their device: on a GPU the weights do not leave it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

_WORDS = 2**22  # of 8 bytes, hashed at a time
_MASK = 2**64 - 1


def hash_weights(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a hash that changes with any bit, name, shape or dtype of a tensor, but not with its device.

    Every word of 8 bytes is multiplied by an odd number that depends on its position, and all products are added,
    modulo 2^64. A change of one word always changes the sum; a change of several words leaves it the same with a
    probability of about 1 in 2^60. This distinguishes weights of separate training runs; it does not protect against
    somebody who searches for two sets of weights with the same hash.

    Args:
        tensors: names and tensors; tensors on the meta device count by name, shape and dtype alone.
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
        places = places * 0x1F83D9ABFB41BD6B  # spreads neighboring positions over all bits
        total += int((some * ((places ^ (places >> 29)) | 1)).sum())
    return total & _MASK
