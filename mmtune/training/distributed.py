"""Communication between the processes of a run, for code without access to the trainer."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def process_number() -> int:
    """Return the rank of this process; 0 if there is only one."""
    return torch.distributed.get_rank() if _several() else 0


def of_every_process(value: T) -> list[T]:
    """Gather the value of each process, in the order of ranks; all processes must call this."""
    if not _several():
        return [value]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
