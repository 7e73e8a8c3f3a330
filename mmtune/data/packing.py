"""Packing of whole documents within a token budget."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def plan_packs(lengths: Sequence[int], *, budget: int, max_rows: int | None = None, seed: int = 0) -> list[list[int]]:
    """Assign every document to a pack, by best fit.

    Documents above half the budget are placed first, by decreasing length, and the rest fill the gaps in
    random order: sorting all of them would put documents of equal length, so often of one kind, into one
    pack, and a step would learn from that kind alone.

    Args:
        lengths: tokens of each document, none above `budget`.
        budget: tokens a pack may hold.
        max_rows: documents a pack may hold; None for no limit.
        seed: decides which documents share a pack, and the order of the packs.

    Returns:
        Packs of document indices. Every index appears exactly once.

    Raises:
        ValueError: a document is longer than the budget.
    """
    if any(length > budget for length in lengths):
        raise ValueError(f"a document of {max(lengths)} tokens does not fit a pack of {budget}")
    random = np.random.default_rng(seed)
    shuffled = [int(i) for i in random.permutation(len(lengths))]
    large = sorted((i for i in shuffled if lengths[i] > budget // 2), key=lambda i: -lengths[i])
    small = [i for i in shuffled if lengths[i] <= budget // 2]
    packs: list[list[int]] = []
    # (room left, pack), ascending: the best fit is the first with enough room
    open_packs: list[tuple[int, int]] = []
    for index in [*large, *small]:
        at = bisect_left(open_packs, (lengths[index], -1))
        if at < len(open_packs):
            room, pack = open_packs.pop(at)
        else:
            room, pack = budget, len(packs)
            packs.append([])
        packs[pack].append(index)
        if max_rows is None or len(packs[pack]) < max_rows:
            insort(open_packs, (room - lengths[index], pack))
    return [packs[int(i)] for i in random.permutation(len(packs))]
