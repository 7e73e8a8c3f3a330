"""Packed batches: examples concatenated into one row, with the ids and positions that keep them apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from mmtune.data.encoding import IGNORED, IMAGE_TOKEN, Example, ModelInputs
from mmtune.data.images import ImageSource, load_image


@dataclass  # not frozen, as `PackedBatch`
class PackLayout:
    """Counts and indices of a pack, found on the host, so that no training step has to ask the device for them.

    Attributes:
        document_lengths: number of tokens of each document; stays on the host.
        document_ends: int32 [documents + 1], cumulative lengths of the documents, from 0.
        supervised: int64 [supervised tokens], positions with a target.
        image_positions: int64 [image tokens], positions that images take.
    """

    document_lengths: tuple[int, ...]
    document_ends: torch.Tensor
    supervised: torch.Tensor
    image_positions: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, targets: torch.Tensor, document_ids: torch.Tensor) -> PackLayout:
        """Find the layout of a pack; on a GPU, the host waits for the values."""
        lengths = torch.bincount(document_ids)
        return cls(
            tuple(lengths.tolist()),
            torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
            (targets != IGNORED).nonzero()[:, 0],
            (input_ids == IMAGE_TOKEN).nonzero()[:, 0],
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackLayout:
        """Return the layout with each tensor changed."""
        return PackLayout(
            self.document_lengths,
            change(self.document_ends),
            change(self.supervised),
            change(self.image_positions),
        )


@dataclass  # not frozen: Lightning's precision plugins convert a copy in place
class PackedBatch:
    """Packed batch of documents, without padding; no document attends to another.

    Attributes:
        input_ids: int64 [tokens], IMAGE_TOKEN at the positions of image features.
        targets: int64 [tokens], the token to predict at each position; IGNORED at unsupervised positions.
        position_ids: int64 [tokens], counted from 0 in every document.
        document_ids: int64 [tokens], which document a token belongs to.
        layout: counts and indices of the pack; see `PackLayout`.
        pixels: float32 [images, 3, height, width] in the order of their tokens; None in a text-only batch, and where
            there are features.
        features: [images, tokens, width], precomputed features of the vision tower; None where there are none.
        image_keys: an int per image, equal for images of the same source.
        where: file and row of each document.
        document_values: float32 [documents] by column, the numbers in the rows that the objective reads.
        weight: weight of the pack in the mean loss of its optimizer step; by default the number of supervised tokens.
        step_weight: weight of the whole optimizer step, with all its packs and processes; 0 where there is none.
        repeated: whether the pack only fills up the last round of an epoch, without any supervised token.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor
    pixels: torch.Tensor | None
    features: torch.Tensor | None
    image_keys: tuple[int, ...]
    where: tuple[str, ...]
    document_values: dict[str, torch.Tensor] = field(default_factory=dict)
    weight: float = 0
    step_weight: float = 0
    repeated: bool = False
    layout: PackLayout = None  # type: ignore[assignment]  # found in `__post_init__`

    def __post_init__(self) -> None:
        if self.layout is None:
            self.layout = PackLayout.of(self.input_ids, self.targets, self.document_ids)

    @property
    def counted_weight(self) -> float:
        """Weight of the pack in its optimizer step; 0 for a repeated pack."""
        return 0 if self.repeated else self.weight

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens."""
        return len(self.layout.supervised)

    @property
    def image_tokens(self) -> int:
        """Number of positions that images take."""
        return len(self.layout.image_positions)

    @property
    def document_lengths(self) -> list[int]:
        """Number of tokens of each document."""
        return list(self.layout.document_lengths)

    def as_repeated(self) -> PackedBatch:
        """Return the batch without supervised tokens, to fill up the last round of an epoch."""
        targets, layout = (
            torch.full_like(self.targets, IGNORED),
            replace(self.layout, supervised=self.layout.supervised[:0]),
        )
        return replace(self, targets=targets, layout=layout, repeated=True)

    def with_images(self, order: Sequence[int]) -> PackedBatch:
        """Return the batch with image `order[i]` in the place of image i."""

        def reordered(images: torch.Tensor | None) -> torch.Tensor | None:
            return None if images is None else images[list(order)]

        return replace(self, pixels=reordered(self.pixels), features=reordered(self.features))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """Return the batch with its tensors on another device.

        With `non_blocking`, tensors in page-locked memory are copied while the host goes on.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """Return the batch in page-locked memory, for faster copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, torch.Tensor)}
        numbers = {k: change(v) for k, v in self.document_values.items()}
        return replace(self, **changed, document_values=numbers, layout=self.layout.map(change))


def pack(examples: Sequence[Example], inputs: ModelInputs) -> PackedBatch:
    """Concatenate examples into a batch, with the features of their images or the preprocessed images.

    Without precomputed features (`inputs.features`), the images are decoded and preprocessed.

    Raises:
        RowError: an image cannot be decoded.
    """
    ids = [torch.from_numpy(example.input_ids.astype(np.int64)) for example in examples]
    images = [(image, example.where) for example in examples for image in example.images]
    pixels = features = None
    if images and inputs.features is not None:
        features = torch.stack([inputs.features(image) for image, _ in images])
    elif images:
        assert inputs.preprocess is not None, "encode() lets no photo through without a tower"
        pixels = torch.stack([inputs.preprocess(load_image(image, where)) for image, where in images])
    return PackedBatch(
        input_ids=torch.cat(ids),
        targets=torch.cat([_targets(example) for example in examples]),
        position_ids=torch.cat([torch.arange(len(one)) for one in ids]),
        document_ids=torch.repeat_interleave(torch.tensor([len(one) for one in ids])),
        pixels=pixels,
        features=features,
        image_keys=tuple(_image_key(image) for image, _ in images),
        where=tuple(example.where for example in examples),
        document_values={
            column: torch.tensor([example.values[column] for example in examples]) for column in inputs.value_columns
        },
        weight=sum(map(inputs.weight, examples)),
    )


def _image_key(image: ImageSource) -> int:
    """Return a hash of the image's path or bytes, the same in every process; Python's own hash() is not."""
    name = image if isinstance(image, bytes) else b"path:" + os.fsencode(image)
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)


def _targets(example: Example) -> torch.Tensor:
    """Return the next token where it is supervised, else IGNORED; the last position of a document has no target."""
    targets = np.full(len(example), IGNORED, dtype=np.int64)
    targets[:-1] = np.where(example.supervised[1:], example.input_ids[1:], IGNORED)
    return torch.from_numpy(targets)
