"""Search for copies of evaluation images among training images: equal files, equal pixels, or near duplicates."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmtune.data.images import EncodedImage, ImageDecodeError

ImageKind = Literal["same file", "same pixels", "near photo"]

# Hashes of two copies of an image differ in a few of the 64 bits. So do those of different drawings, such as a map with
# one label or another. Therefore pairs with similar hashes are compared further: their small copies must agree on
# average, and at every point. The limits were chosen on the first 400 images of ScienceQA: pairs below them are copies
# of one image, pairs above are maps with different labels.
BITS = 12  # maximum number of hash bits that differ
DIFFERENCE = 0.2  # maximum root mean square difference, in standard deviations of the image
SPOT = 0.045  # maximum difference in brightness at any point, as a fraction of the full range
FAINT = 2.0  # standard deviation (of values from 0 to 255) below which a small copy has too little contrast to compare

_SIDE = 32  # of the small copies, in pixels
_BLOCK = 8  # number of lowest frequencies in each direction
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrint:
    """Fingerprints of an image.

    Attributes:
        encoded: SHA-256 of the file's bytes.
        pixels: SHA-256 of its size and its pixels in RGB, upright; None where it cannot be decoded.
        hash: perceptual hash: 64 bits that change little when the image is scaled or compressed; 0 where it cannot be
            decoded.
        small: the image in 32 by 32 pixels, RGB, 0 to 255, [32, 32, 3]; None where it cannot be decoded.
    """

    encoded: str
    pixels: str | None = None
    hash: int = 0
    small: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class ImageMatch:
    """Image of the evaluation that equals, or nearly equals, a given image.

    Attributes:
        number: its position in the index.
        kind: kind of agreement.
        detail: the SHA-256 in common, or the number of hash bits that differ.
    """

    number: int
    kind: ImageKind
    detail: str


def image_print(image: EncodedImage) -> ImagePrint | None:
    """Compute the fingerprints of an image; None for an image of a single color, which is no evidence of a copy."""
    try:
        decoded = image.open()
    except ImageDecodeError:
        return ImagePrint(image.sha256)
    if decoded.getcolors(maxcolors=1) is not None:
        return None
    digest = hashlib.sha256(repr(decoded.size).encode() + decoded.tobytes()).hexdigest()
    small = np.asarray(decoded.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    return ImagePrint(image.sha256, digest, perceptual_hash(small), small)


def perceptual_hash(small: NDArray[np.uint8]) -> int:
    """Compute pHash: 64 bits, each for a low frequency above the median (Zauner, 2010, section 3.2.1).

    Args:
        small: RGB, [32, 32, 3].
    """
    spectrum = _COSINES @ (small @ _LUMA) @ _COSINES.T
    bits = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(bits).tobytes())


def _cosines() -> NDArray[np.float64]:
    """Return the first eight rows of the discrete cosine transform (II) of 32 values, [8, 32]."""
    places = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.arange(_BLOCK)[:, None] * places)


_COSINES = _cosines()


class ImageIndex:
    """Index of the images of an evaluation, to search for copies of an image.

    A hash is compared with all hashes of the index at once. For 40,000 images, this takes a hundredth of the time of
    decoding the image.

    Args:
        prints: fingerprints of the evaluation's images.
    """

    def __init__(self, prints: Sequence[ImagePrint]) -> None:
        self._by_file: dict[str, list[int]] = defaultdict(list)
        self._by_pixels: dict[str, list[int]] = defaultdict(list)
        for number, one in enumerate(prints):
            self._by_file[one.encoded].append(number)
            if one.pixels is not None:
                self._by_pixels[one.pixels].append(number)
        seen = [(number, one.hash, one.small) for number, one in enumerate(prints) if one.small is not None]
        self._numbers = [number for number, _, _ in seen]
        self._hashes = np.array([code for _, code, _ in seen], dtype=np.uint64)
        self._small = [small for _, _, small in seen]

    def find(self, image: ImagePrint) -> list[ImageMatch]:
        """Return all images of the index that match this one, each with the strictest kind that applies."""
        found = {n: ImageMatch(n, "same file", image.encoded) for n in self._by_file.get(image.encoded, ())}
        if image.pixels is None or image.small is None:
            return list(found.values())
        for number in self._by_pixels.get(image.pixels, ()):
            found.setdefault(number, ImageMatch(number, "same pixels", image.pixels))
        distances = np.bitwise_count(self._hashes ^ np.uint64(image.hash))
        for place in np.flatnonzero(distances <= BITS):
            if self._numbers[place] not in found and looks_alike(image.small, self._small[place]):
                detail = f"{distances[place]} of 64 bits differ"
                found[self._numbers[place]] = ImageMatch(self._numbers[place], "near photo", detail)
        return list(found.values())


def looks_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Return whether two small images are copies of one image, apart from scaling and compression.

    Args:
        one: RGB, [32, 32, 3].
        other: RGB, [32, 32, 3].
    """
    apart = one.astype(np.float64) - other
    contrast = min(one.std(axis=(0, 1)).max(), other.std(axis=(0, 1)).max())
    as_a_whole = np.sqrt(np.mean(apart**2)) <= DIFFERENCE * contrast
    return bool(contrast >= FAINT and as_a_whole and np.abs(apart @ _LUMA).max() <= SPOT * 255)
