"""Which photos of an evaluation are among those of the training rows: byte for byte, pixel for pixel, or nearly."""

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

# Hashes of two copies of a photo differ in a few of the 64 bits. So do those of different drawings, of a map with one
# label or another; so what the hashes propose is looked at: small copies must agree as a whole, and at every point.
# Chosen on the first 400 pictures of ScienceQA: pairs below these limits are one picture, those above are maps with
# other labels.
BITS = 12
DIFFERENCE = 0.2  # root mean square, in standard deviations of the picture
SPOT = 0.045  # at any one point, in brightness, of the full range
FAINT = 2.0  # standard deviation below which a small picture, in whole steps of 255, no longer tells

_SIDE = 32  # of the small copies
_BLOCK = 8  # of the lowest frequencies
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrint:
    """What is kept of a photo to know it again.

    Attributes:
        encoded: SHA-256 of the file's bytes.
        pixels: SHA-256 of its size and its pixels in RGB, upright; None where it cannot be decoded.
        hash: 64 bits that change little when the picture is scaled or compressed.
        small: the picture in 32 by 32 pixels, RGB, 0 to 255, [32, 32, 3].
    """

    encoded: str
    pixels: str | None = None
    hash: int = 0
    small: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class ImageMatch:
    """A photo of the evaluation that is the one looked for.

    Attributes:
        number: its place in the index.
        kind: how it is the same.
        detail: the digest in common, or how near it is.
    """

    number: int
    kind: ImageKind
    detail: str


def image_print(image: EncodedImage) -> ImagePrint | None:
    """What is kept of a photo; None of a picture of one colour, which may be anyone's."""
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
    """The 64 signs of the lowest frequencies about their median: pHash (Zauner, 2010, section 3.2.1).

    Args:
        small: RGB, [32, 32, 3].
    """
    spectrum = _COSINES @ (small @ _LUMA) @ _COSINES.T
    bits = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(bits).tobytes())


def _cosines() -> NDArray[np.float64]:
    """The first eight rows of the discrete cosine transform (II) of 32 values."""
    places = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.arange(_BLOCK)[:, None] * places)


_COSINES = _cosines()


class ImageIndex:
    """Finds a photo among those of an evaluation.

    A hash is compared with all of the index at once, which for 40,000 photos takes a hundredth of what decoding the
    photo does.

    Args:
        prints: of the evaluation's photos.
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
        """All photos of the index that are this one, each by the strictest kind that holds."""
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
    """Whether two small pictures are copies of one, but for scaling and compression.

    Args:
        one: RGB, [32, 32, 3].
        other: RGB, [32, 32, 3].
    """
    apart = one.astype(np.float64) - other
    contrast = min(one.std(axis=(0, 1)).max(), other.std(axis=(0, 1)).max())
    as_a_whole = np.sqrt(np.mean(apart**2)) <= DIFFERENCE * contrast
    return bool(contrast >= FAINT and as_a_whole and np.abs(apart @ _LUMA).max() <= SPOT * 255)
