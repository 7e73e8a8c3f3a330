"""Vision features of all images, read from the store or computed and stored before the first step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mmtune.data.images import ImageSource, load_image
from mmtune.models.features import FeatureStore, StoredFeatures, image_digest
from mmtune.models.vision import VisionTower, preprocessing

_IMAGES_AT_ONCE = 32  # through the tower, and to the disk
_GIB = 2**30


def stored_features(
    trainer: pl.Trainer,
    tower: VisionTower,
    images: Mapping[ImageSource, str],
    *,
    limit: float,
    num_workers: int = 0,
) -> StoredFeatures | None:
    """Compute and store the features of images that are not stored yet, and return access to all features.

    Each process computes its share.

    Args:
        trainer: trainer whose processes take part.
        tower: vision tower, on the device that computes.
        images: images, each with the file and row that an error names if the image cannot be decoded.
        limit: GiB that this tower's features may take on the disk.
        num_workers: processes that decode images; 0 decodes them in this one.

    Returns:
        Access to the stored features. None if they would take more than the limit or than half of the free disk space,
        or cannot be written; a line is printed to stderr, and the tower must run in every step.

    Raises:
        RowError: an image cannot be decoded.
    """
    store = FeatureStore(tower)
    digests = {image: _digest(image, where) for image, where in images.items()}

    def encode_missing(rank: int, world: int) -> None:
        stored = store.rows()  # shares are of all images: the missing ones change while other processes store theirs
        missing = [image for image in list(digests)[rank::world] if digests[image] not in stored]
        features = encoded(tower, {image: images[image] for image in missing}, num_workers=num_workers)
        with _progress(len(missing), shown=trainer.is_global_zero) as advance:
            for start in range(0, len(missing), _IMAGES_AT_ONCE):
                some = missing[start : start + _IMAGES_AT_ONCE]
                store.add({digests[image]: next(features) for image in some})
                advance(len(some))

    obstacle = _no_room(store, set(digests.values()), limit)
    try:
        if not obstacle:
            encode_missing(trainer.global_rank, trainer.world_size)
    except OSError as error:
        obstacle = f"{store.folder}: {error.strerror}"
    # all or none: processes that read features and processes that run the tower would not round alike
    if not trainer.strategy.reduce_boolean_decision(not obstacle):
        if trainer.is_global_zero:
            reason = obstacle or "another process cannot"
            print(f"The photos' features are not stored ({reason}); the tower runs in every step.", file=sys.stderr)
        return None
    encode_missing(0, 1)  # the features that processes on other machines stored on their own disks
    return store.reader(digests)


def encoded(tower: VisionTower, images: Mapping[ImageSource, str], *, num_workers: int = 0) -> Iterator[torch.Tensor]:
    """Yield the tower's features of images, [num_tokens, width] each and not standardized, in the same order.

    Raises:
        RowError: an image cannot be decoded; names the file and row given with it.
    """
    pixels = _Pixels(list(images.items()), preprocessing(tower.options, tower.shape))
    device = next(tower.trunk.parameters()).device
    # a separate generator: encoding of images must not change the random numbers of training
    generator = torch.Generator().manual_seed(0)
    for batch in DataLoader(pixels, batch_size=_IMAGES_AT_ONCE, num_workers=num_workers, generator=generator):
        yield from tower.encode(batch.to(device))


class _Pixels(Dataset[torch.Tensor]):
    """Dataset of images, decoded and preprocessed."""

    def __init__(
        self, images: Sequence[tuple[ImageSource, str]], preprocess: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.preprocess(load_image(*self.images[number]))


def _digest(image: ImageSource, where: str) -> bytes:
    try:
        return image_digest(image)
    except OSError:
        load_image(image, where)  # raises the error that names the fault
        raise


def _no_room(store: FeatureStore, digests: set[bytes], limit: float) -> str:
    """Return why the missing features cannot be stored (limit or free disk space); empty if they can."""
    stored = store.rows()
    needed = len(digests - stored.keys()) * store.row_bytes
    total = needed + len(stored) * store.row_bytes
    free = shutil.disk_usage(next(folder for folder in store.folder.parents if folder.is_dir())).free
    if needed and total > limit * _GIB:
        return f"they would take {total / _GIB:.3g} GiB; --model.stored_features_gib {limit:g} allows no more"
    if needed > free / 2:
        return f"they would take {needed / _GIB:.3g} GiB, and {store.folder.parent} has {free / _GIB:.3g} GiB left"
    return ""


@contextmanager
def _progress(count: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield a function that adds a number of finished images."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and count and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("photos through the tower", total=count)
        yield lambda done: progress.advance(task, done)
