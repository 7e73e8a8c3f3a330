"""Held-out rows for the validation loss, chosen so that no copy of them is trained on."""

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
    """Split rows into training rows and a held-out fraction for the validation loss, drawn by the seed.

    Rows with the same image, and text-only rows with the same text, stay together, also if they are linked through
    other rows. A group that is larger than the number of rows still to hold out is trained on. The same question
    about another image is a different row.

    Args:
        rows: numbers of examples in the store.
        store: holds their texts and images.
        fraction: fraction of the rows to hold out.
        seed: decides which rows are held out.

    Returns:
        The training rows and the held-out rows, each in the order of `rows`.
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
    """Count the rows that share an image, or without images the text, with a row that is trained on."""
    owners, keys = _ties([*trained, *rows], store)
    old = owners < len(trained)
    return len(np.unique(owners[~old][np.isin(keys[~old], keys[old])]))


def _ties(rows: list[int], store: ExampleStore) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of rows and keys that link them, int64 [ties] each; keys of texts are below 0, of images not."""
    owners, images = store.shown(rows)
    text_only = np.setdiff1d(np.arange(len(rows)), owners)
    texts = store.text_keys(rows)[text_only] | np.int64(-(2**63))
    same = _by_content(store.all_images)[images] if len(images) else images
    return np.concatenate([text_only, owners]), np.concatenate([texts, same])


def _groups(owners: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Return a group number per row, equal for rows that share a key, also through other rows."""
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
    """Return a number per image, equal for equal bytes, whatever the paths; int64 [images].

    Only images whose size in bytes is not unique are read.
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
