"""Which rows are held out to measure the loss on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtune.data.conversation import Photo


def hold_out(photos: Sequence[Sequence[Photo]], fraction: float, seed: int) -> list[bool]:
    """Whether each row is for validation: the fraction of them, drawn by the seed.

    All that show a photo go the same way, so that no photo is trained on and measured on.

    Args:
        photos: of each row.
        fraction: of the rows, where none share a photo.
        seed: decides which.
    """
    if not fraction:
        return [False] * len(photos)
    groups = _photo_groups(photos)
    distinct = list(dict.fromkeys(groups))
    chosen = np.random.default_rng(seed).permutation(len(distinct))
    held = {distinct[i] for i in chosen[: round(len(distinct) * fraction)]}
    return [group in held for group in groups]


def _photo_groups(photos: Sequence[Sequence[Photo]]) -> list[int]:
    """A number per row, equal where two share a photo, be it by way of a third."""
    parents = list(range(len(photos)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    first_with: dict[Photo, int] = {}
    for number, shown in enumerate(photos):
        for photo in shown:
            parents[root(number)] = root(first_with.setdefault(photo, number))
    return [root(number) for number in range(len(photos))]
