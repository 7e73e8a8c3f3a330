"""Which rows are held out to measure the loss on, so that none is also trained on under another name."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtune.data.example_store import ExampleStore
from mmtune.data.images import ImageSource


def hold_out(rows: list[int], store: ExampleStore, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The rows to train on, and the fraction of them to measure the loss on, drawn by the seed.

    Rows with the same photo, and rows without photos with the same text, go the same way, be it by way of others. A
    group that is larger than what is still to be held out is trained on. The same question about another photo is
    another row.

    Args:
        rows: numbers of the store.
        store: knows their texts and photos.
        fraction: of the rows.
        seed: decides which.
    """
    if not fraction:
        return rows, []
    groups = _groups(*_ties(rows, store), len(rows))
    distinct, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    left = round(len(rows) * fraction)
    held = np.zeros(len(distinct), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(distinct)):
        if sizes[group] <= left:
            held[group] = True
            left -= int(sizes[group])
    out = held[group_of].tolist()
    return [row for row, is_out in zip(rows, out, strict=True) if not is_out], [
        row for row, is_out in zip(rows, out, strict=True) if is_out
    ]


def count_seen(rows: list[int], trained: list[int], store: ExampleStore) -> int:
    """How many of the rows have a photo, or without photos the text, of one that is trained on."""
    owners, keys = _ties([*trained, *rows], store)
    old = owners < len(trained)
    return len(np.unique(owners[~old][np.isin(keys[~old], keys[old])]))


def _ties(rows: list[int], store: ExampleStore) -> tuple[np.ndarray, np.ndarray]:
    """Places in the list and what ties them: int64 [ties] each. Keys of texts are below 0, those of photos not."""
    owners, images = store.shown(rows)
    text_only = np.setdiff1d(np.arange(len(rows)), owners)
    texts = store.text_keys(rows)[text_only] | np.int64(-(2**63))
    same = _by_content(store.all_images)[images] if len(images) else images
    return np.concatenate([text_only, owners]), np.concatenate([texts, same])


def _groups(owners: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """A number per place, equal where two share a key, be it by way of a third."""
    parents = array("q", range(count))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    order = np.argsort(keys, kind="stable")
    owners, keys = owners[order], keys[order]
    tied = keys[1:] == keys[:-1]
    for one, other in zip(owners[:-1][tied].tolist(), owners[1:][tied].tolist(), strict=True):
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    return np.fromiter((root(place) for place in range(count)), dtype=np.int64, count=count)


def _by_content(images: Sequence[ImageSource]) -> np.ndarray:
    """A number per photo, equal where their bytes are, whatever their paths; int64 [photos].

    Only photos of the same size are read.
    """
    sizes = [len(image) if isinstance(image, bytes) else image.stat().st_size for image in images]
    of_size = Counter(sizes)
    first: dict[int | bytes, int] = {}
    return np.fromiter(
        (
            first.setdefault(size if of_size[size] == 1 else _digest(image), number)
            for number, (image, size) in enumerate(zip(images, sizes, strict=True))
        ),
        dtype=np.int64,
        count=len(images),
    )


def _digest(image: Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
