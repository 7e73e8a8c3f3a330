"""Decoding of images from untrusted files or bytes to RGB."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mmtune.common.errors import RowError, reason
from mmtune.data.image_files import FormatError, open_image
from mmtune.data.image_modes import as_rgb

# where an image comes from: its file, or the encoded bytes themselves (rows from parquet files and the hub)
ImageSource = Path | bytes


class ImageDecodeError(ValueError):
    """Bytes of an image cannot be decoded."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Encoded image that is decoded only when it is opened.

    Attributes:
        data: the encoded bytes.
        sha256: SHA-256 of those bytes, in hex.
    """

    data: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> EncodedImage:
        """Create an image from its encoded bytes."""
        return cls(data, hashlib.sha256(data).hexdigest())

    def open(self) -> Image.Image:
        """Decode the image to RGB, upright.

        Raises:
            ImageDecodeError: the bytes are damaged, not an image, or an image that is far too large.
        """
        try:
            return decode(io.BytesIO(self.data))
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            raise ImageDecodeError(f"the photo cannot be decoded: {type(error).__name__}") from error


def load_image(image: ImageSource, where: str) -> Image.Image:
    """Decode an image to RGB, upright.

    Raises:
        RowError: it is missing, truncated, far too large or not an image; the message begins with `where`.
    """
    name = str(image) if isinstance(image, Path) else f"of {len(image)} bytes"
    try:
        return decode(image if isinstance(image, Path) else io.BytesIO(image))
    except FileNotFoundError:
        raise RowError(f"{where}: the photo {name} does not exist") from None
    except FormatError as error:
        raise RowError(f"{where}: the photo {name} is {error}") from None
    except UnidentifiedImageError:
        raise RowError(f"{where}: the photo {name} is not a picture of a known format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise RowError(f"{where}: the photo {name} cannot be decoded: {reason(error)}") from None


def decode(file: Path | BinaryIO) -> Image.Image:
    """Decode an image file to RGB as `to_rgb` does, if its header shows that this takes at most 256 MiB.

    Raises:
        FormatError: it is of another format than those of `mmtune.data.image_files`.
        Image.DecompressionBombError: decoding takes more memory, or the file is too large.
        Exception: it is damaged; Pillow's plugins raise nearly any exception.
    """
    with open_image(file) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB: rotated by its EXIF orientation, with colors converted by `as_rgb`."""
    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):  # else exif_transpose would make a copy
        image = ImageOps.exif_transpose(image)
    image.load()
    return as_rgb(image)
