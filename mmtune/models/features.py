"""Image features of a frozen vision tower, stored once and read from a memory-mapped file.

FOLDER/features.bin   a row for each image: [num_tokens, width] in the tower's dtype, as the tower computed it
FOLDER/photos.bin     the images' digests, in the same order

A row is valid once its digest is there. The digest is written last, so that the next writer overwrites a row that a
killed process left incomplete. Several processes may write at the same time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmtune.common.disk import locked
from mmtune.common.files import cache_dir, sha256_file
from mmtune.data import image_modes, images
from mmtune.data.images import ImageSource
from mmtune.models.vision import VisionTower

_DIGEST_BYTES = 32


class FeatureStore:
    """Stored features of one vision tower; see the module docstring for the files.

    Attributes:
        row_shape: num_tokens and width.
        row_bytes: size of one image's features on the disk, in bytes.
    """

    def __init__(self, tower: VisionTower) -> None:
        """Open the store of a tower: towers that differ in weights, blocks, grid, dtype or device type share none."""
        weight = next(tower.trunk.parameters())
        self.folder = cache_dir() / "features" / _tower_key(tower)
        self.row_shape, self.dtype = (tower.shape.num_tokens, tower.shape.width), weight.dtype
        self.row_bytes = tower.shape.num_tokens * tower.shape.width * self.dtype.itemsize
        self._features, self._images = self.folder / "features.bin", self.folder / "photos.bin"
        self._index: dict[bytes, int] = {}  # the rows that were read so far
        self._file: int | None = None  # inode of the file that `_index` was read from

    def rows(self) -> dict[bytes, int]:
        """Return the row of each stored image, by its digest."""
        if not self._images.is_file() or not self._features.is_file():
            return {}
        with self._images.open("rb") as stream:
            status = os.fstat(stream.fileno())
            count = min(status.st_size // _DIGEST_BYTES, self._features.stat().st_size // self.row_bytes)
            if status.st_ino != self._file or count < len(self._index):
                self._index, self._file = {}, status.st_ino
            known = len(self._index)
            stream.seek(known * _DIGEST_BYTES)
            digests = stream.read((count - known) * _DIGEST_BYTES)
        for i in range(len(digests) // _DIGEST_BYTES):
            self._index[digests[i * _DIGEST_BYTES : (i + 1) * _DIGEST_BYTES]] = known + i
        if len(self._index) < count:  # no image is stored twice: the file is damaged
            self._index = {}
        return self._index

    def add(self, features: Mapping[bytes, torch.Tensor]) -> None:
        """Store image features [num_tokens, width] by digest; features that are already stored stay unchanged.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        with locked(self.folder / "lock"):
            stored = self.rows()
            new = {digest: tensor for digest, tensor in features.items() if digest not in stored}
            _append(self._features, len(stored) * self.row_bytes, b"".join(map(_bytes, new.values())))
            _append(self._images, len(stored) * _DIGEST_BYTES, b"".join(new))

    def reader(self, digests: Mapping[ImageSource, bytes]) -> StoredFeatures:
        """Return a reader for the features of these images, all of which must be stored."""
        stored = self.rows()
        rows = {image: stored[digest] for image, digest in digests.items()}
        return StoredFeatures(self._features, self.row_shape, self.dtype, rows)


class StoredFeatures:
    """Reader of image features in a store; each data loader process opens the file for itself."""

    def __init__(
        self, file: Path, row_shape: tuple[int, int], dtype: torch.dtype, rows: dict[ImageSource, int]
    ) -> None:
        self._file, self._row_shape, self._dtype, self._rows = file, row_shape, dtype, rows

    def __call__(self, image: ImageSource) -> torch.Tensor:
        """Return the features [num_tokens, width] of an image, as the tower computed them."""
        return self._mapped[self._rows[image]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}

    @functools.cached_property
    def _mapped(self) -> torch.Tensor:
        shape = (max(self._rows.values()) + 1, *self._row_shape)
        return torch.from_file(str(self._file), shared=False, size=math.prod(shape), dtype=self._dtype).view(shape)


def image_digest(image: ImageSource) -> bytes:
    """Return the SHA-256 of an image's bytes.

    Raises:
        OSError: the image file cannot be read.
    """
    return hashlib.sha256(image).digest() if isinstance(image, bytes) else bytes.fromhex(sha256_file(image))


def _tower_key(tower: VisionTower) -> str:
    """Return a key that changes with everything the features depend on, except standardization, which comes later."""
    options = asdict(tower.options) | {"standardise": None, "weights": None}
    device = next(tower.trunk.parameters()).device.type
    digest = hashlib.sha256(json.dumps([options, asdict(tower.shape), device], sort_keys=True).encode())
    for module in (images, image_modes):  # these decode an image file into pixels
        digest.update(inspect.getsource(module).encode())
    for library in ("pillow", "torch", "timm", "open_clip_torch"):
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    for name, tensor in sorted(tower.trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _append(file: Path, at: int, content: bytes) -> None:
    """Cut off a file at an offset, write content there, and sync it to the disk before other files are written."""
    with file.open("r+b" if file.exists() else "wb") as stream:
        stream.truncate(at)
        stream.seek(at)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
