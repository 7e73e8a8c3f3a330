"""Which rows are held out to measure the loss on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from mmtune.data.images import Photo

R = TypeVar("R")


def hold_out(
    rows: list[R], photos: Callable[[R], Sequence[Photo]], fraction: float, seed: int
) -> tuple[list[R], list[R]]:
    """The rows to train on, and the fraction of them to measure the loss on, drawn by the seed.

    All that show a photo go the same way, so that no photo is trained on and measured on.
    """
    if not fraction:
        return rows, []
    groups = _photo_groups([photos(row) for row in rows])
    distinct = list(dict.fromkeys(groups))
    chosen = np.random.default_rng(seed).permutation(len(distinct))
    held = {distinct[i] for i in chosen[: round(len(distinct) * fraction)]}
    kept, out = list[R](), list[R]()
    for row, group in zip(rows, groups, strict=True):
        (out if group in held else kept).append(row)
    return kept, out


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
