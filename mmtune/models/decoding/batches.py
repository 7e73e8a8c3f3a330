"""Prompts in batches, smaller ones once memory has run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mmtune.common.errors import UserError


def in_batches(
    order: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    first: Callable[[Sequence[int], int], list[int]],
    run: Callable[[list[int]], None],
) -> int:
    """Run prompts batch by batch; where memory runs out, half the budget from there on.

    Args:
        order: the prompts' numbers, those that belong together side by side.
        lengths: tokens of each prompt.
        budget: tokens that a batch may hold.
        first: the batch that is taken of those waiting, their beginning, within a budget; at least one.
        run: computes a batch.

    Returns:
        The budget that was left.

    Raises:
        UserError: memory is too small for a single prompt.
    """
    waiting = list(order)
    while waiting:
        batch = first(waiting, budget)
        try:
            run(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"out of memory with a single prompt of {lengths[batch[0]]} tokens; use a smaller "
                    "model, or a device with more memory"
                ) from None
        else:
            waiting = waiting[len(batch) :]
            continue
        # not in the handler, where the error still holds on to what was computed
        budget = max(1, budget // 2)
        torch.cuda.empty_cache()
    return budget


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The prompts' numbers in an order that pads little, and runs out of memory at once if it ever does."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def padded_batch(lengths: Sequence[int]) -> Callable[[Sequence[int], int], list[int]]:
    """For `in_batches` in the order `longest_first`: batches that stay within the budget, padded to their longest.

    Args:
        lengths: tokens of each prompt, room for the answer included.
    """

    def first(waiting: Sequence[int], budget: int) -> list[int]:
        return list(waiting[: max(1, budget // lengths[waiting[0]])])

    return first


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",  # torch has no class of its own for the host's memory
    "CUDA error: out of memory",  # of CUDA itself, outside torch's allocator
    "_STATUS_ALLOC_FAILED",  # of cuBLAS, cuDNN and others, for their workspaces
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the memory of a GPU or of the host ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
