"""Which rows are held out to measure the loss on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtune.data.conversation import Conversation, Photo


def hold_out(conversations: Sequence[Conversation], fraction: float, seed: int) -> list[bool]:
    """Whether each conversation is for validation: the fraction of them, drawn by the seed.

    All that show a photo go the same way, so that no photo is trained on and measured on.
    """
    groups = _photo_groups(conversations)
    distinct = list(dict.fromkeys(groups))
    chosen = np.random.default_rng(seed).permutation(len(distinct))
    held = {distinct[i] for i in chosen[: round(len(distinct) * fraction)]}
    return [group in held for group in groups]


def _photo_groups(conversations: Sequence[Conversation]) -> list[int]:
    """A number per conversation, equal where two share a photo, be it by way of a third."""
    parents = list(range(len(conversations)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    first_with: dict[Photo, int] = {}
    for number, conversation in enumerate(conversations):
        for photo in conversation.images:
            parents[root(number)] = root(first_with.setdefault(photo, number))
    return [root(number) for number in range(len(conversations))]
