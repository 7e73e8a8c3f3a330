"""Supported image formats, and a memory limit that is checked before the pixels are decoded.

The formats are the usual ones of photos, and the decoder of each was reviewed. None runs a program, and none calls the
decoder of another format, except TIFF, which calls JPEG's. Content beside the first picture (frames, thumbnails,
profiles) is not decoded. Pillow limits texts, profiles and tags: a megabyte each, and no more than the file in total.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, ROWSPERSTRIP, SAMPLESPERPIXEL, TILELENGTH, TILEWIDTH, TiffImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_BYTES = 2**28  # of memory for one picture
MOST_PIXELS = MOST_BYTES // 3  # in RGB
_LARGEST_FILE = MOST_BYTES // 2
# of TIFF; not WebP, Zstandard and others, whose decoders have no memory limit, nor the JPEG variant before 1995
_COMPRESSIONS = {
    "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "tiff_ccitt", "group3", "group4", "jpeg",
}  # fmt: skip
_SAVE = f"save it as PNG or JPEG ({', '.join(FORMATS)} are read)"
_LOOKED_AT = 32  # first bytes of a file, which identify its format
_KEPT = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel in Pillow, else 4
_NAMELESS = ("IPTC", "PCD", "TGA")  # formats without a signature; Pillow reads only their headers


class FormatError(ValueError):
    """Image of an unsupported format; the message names it and the formats to save it in."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image file and read only its header; decoding its pixels takes at most `MOST_BYTES` of memory.

    Raises:
        FormatError: the format is not supported.
        UnidentifiedImageError: the file is of no known format.
        Image.DecompressionBombError: decoding takes more memory, or the file is larger than `_LARGEST_FILE` bytes.
        Exception: the file is damaged; Pillow's plugins raise nearly any exception.
    """
    if (size := _file_size(file)) > _LARGEST_FILE:
        raise Image.DecompressionBombError(f"a file of {size:,} bytes, and no more than {_LARGEST_FILE:,} are read")
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if (name := _other_format(file)) is not None:
            raise FormatError(f"of the format {name}, which is not read; {_SAVE}") from None
        raise
    try:
        _check_memory(image)
    except BaseException:
        image.close()
        raise
    return image


def _check_memory(image: Image.Image) -> None:
    """Raise an error if an image takes too much memory, or its compression has a decoder without a memory limit."""
    compression = image.info.get("compression") if isinstance(image, TiffImageFile) else "raw"
    if compression not in _COMPRESSIONS:
        raise FormatError(f"of the format TIFF, compressed as {compression}, which is not read; {_SAVE}")
    width, height = image.size
    if (needed := width * height * _bytes_per_pixel(image) + _strip(image)) > MOST_BYTES:
        size = f"{width:,} x {height:,} pixels"
        raise Image.DecompressionBombError(
            f"{size}, which take {needed // 2**20:,} MiB to decode, more than {MOST_BYTES // 2**20:,}; scale it down"
        )


def _bytes_per_pixel(image: Image.Image) -> int:
    """Return the maximum memory per pixel to decode an image and convert it to RGB, as measured for each format.

    A JPEG of several scans keeps its coefficients, 16 bits each, until the last scan. libwebp keeps two canvases, and
    returns a copy of one. Run lengths of BMP become a list of bytes before they are pixels.
    """
    kept = _KEPT.get(image.mode, 4)
    # a PNG may store its orientation after its pixels, and Pillow would decode them to read it
    turned = kept if image.format == "PNG" or image.getexif().get(ExifTags.Base.Orientation) in range(2, 9) else 0
    if image.mode == "RGB":
        further = 0
    elif image.mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "RGBX"):
        further = 4
    else:  # values that are scaled, or colors that are composited on a background
        further = 24 if image.mode in ("I", "F") else 12
    if "transparency" in image.info:
        further = 12
    decoder = 0
    if isinstance(image, JpegImageFile) and not _in_one_scan(image):
        decoder = 2 * len(image.getbands())
    elif image.format == "WEBP":
        return kept + 12 + max(turned, further)
    elif image.format == "BMP" and image.info.get("compression") not in (None, 0, 3):
        decoder = 4
    return max(kept + decoder, kept + turned + further)


def _strip(image: Image.Image) -> int:
    """Return the size in bytes of a decoded strip or tile of a TIFF; it may be larger than the image.

    Each strip or tile is decoded as a whole. The result is 0 for an uncompressed TIFF and for other formats.
    """
    if not isinstance(image, TiffImageFile):
        return 0
    tags = image.tag_v2
    width, height = image.size
    bits = tags.get(BITSPERSAMPLE, (1,))
    samples = max(4, tags.get(SAMPLESPERPIXEL, 1) * max(bits if isinstance(bits, tuple) else (bits,)) // 8)
    rows = min(height, tags.get(ROWSPERSTRIP, height))
    area = max(tags.get(TILEWIDTH, 0) * tags.get(TILELENGTH, 0), width * rows)
    return int(area * samples) if image.info.get("compression") != "raw" else 0


def _in_one_scan(image: JpegImageFile) -> bool:
    """Return whether one scan of a JPEG holds all its components, so that it is decoded line by line.

    The check is strict: a file that is unusual in any way counts as one of several scans.
    """
    stream = image.fp
    assert stream is not None
    place = stream.tell()
    try:
        stream.seek(0)
        components = 0
        if stream.read(2) != b"\xff\xd8":
            return False
        while True:
            begins, marker, *length = stream.read(4)
            size = int.from_bytes(length, "big")
            if begins != 0xFF or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or size < 2:
                return False
            if marker in (0xC0, 0xC1):
                body = stream.read(size - 2)
                components = body[5]
                if (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")) != image.size:
                    return False
            elif marker == 0xDA:
                return components == stream.read(1)[0]
            else:
                stream.seek(size - 2, os.SEEK_CUR)
    except (ValueError, IndexError):  # end of the file
        return False
    finally:
        stream.seek(place)


def _file_size(file: Path | BinaryIO) -> int:
    if isinstance(file, Path):
        return file.stat().st_size
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def _other_format(file: Path | BinaryIO) -> str | None:
    """Return the name of an unsupported format, recognized by the beginning of the file; None if unknown."""
    Image.init()
    with suppress(Exception):  # plugins may fail on files of other formats
        begins = _beginning(file)
        for name, (_, accept) in Image.OPEN.items():
            if name not in FORMATS and accept is not None and accept(begins) is True:
                return name
        with Image.open(file, formats=_NAMELESS) as image:
            return image.format
    return None


def _beginning(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(_LOOKED_AT)
    file.seek(0)
    begins = file.read(_LOOKED_AT)
    file.seek(0)
    return begins
