"""Which files of pictures are opened, and how much memory they may take, known before their pixels are.

The formats are those that photos come in, each looked at. None runs a program, and none leads to a decoder of another
format, but TIFF to JPEG's. What they hold beside the first picture (frames, thumbnails, profiles) is not decoded.
Texts, profiles and tags are bounded by Pillow: a megabyte each, and no more than the file in all.
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
# of TIFF; not WebP, Zstandard and others, whose decoders know no bounds, nor JPEG as it was before 1995
_COMPRESSIONS = {
    "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "tiff_ccitt", "group3", "group4", "jpeg",
}  # fmt: skip
_SAVE = f"save it as PNG or JPEG ({', '.join(FORMATS)} are read)"
_LOOKED_AT = 32  # bytes by which a format is told
_KEPT = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel in Pillow, else 4
_NAMELESS = ("IPTC", "PCD", "TGA")  # formats that are told by no beginning, of which Pillow reads the header alone


class FormatError(ValueError):
    """A picture is of a format that is not read; says which, and what to save it as."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open a picture's file, of which the header alone is read; its pixels will take `MOST_BYTES` at most.

    Raises:
        FormatError: it is of a format that is not read.
        UnidentifiedImageError: of none at all.
        Image.DecompressionBombError: it takes more memory, or the file is larger than any photo.
        Exception: it is damaged; Pillow's plugins raise nearly anything.
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
    """Raise an error where a picture takes too much, or is compressed in a way whose decoder cannot be held to that."""
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
    """Of memory at the most, while a picture is decoded and made RGB, as measured for each format.

    A JPEG of several scans keeps its coefficients, 16 bits each, until the last scan. libwebp keeps two canvases, and
    gives a copy of one. BMP's run lengths become a list of bytes before they are pixels.
    """
    kept = _KEPT.get(image.mode, 4)
    # a PNG may say it after its pixels, and Pillow would decode them to see
    turned = kept if image.format == "PNG" or image.getexif().get(ExifTags.Base.Orientation) in range(2, 9) else 0
    if image.mode == "RGB":
        further = 0
    elif image.mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "RGBX"):
        further = 4
    else:  # numbers that are scaled, or colors that are laid on a ground
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
    """The bytes of a TIFF's strips or tiles, each decoded as a whole; they may be larger than the picture."""
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
    """Whether a JPEG's one scan holds all of its components, so that it is decoded line by line.

    Read as strictly as can be: what is in any way unusual counts as several scans.
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
    except (ValueError, IndexError):  # it ends
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
    """The name of the format that a file seems to be of, by how it begins."""
    Image.init()
    with suppress(Exception):  # a plugin's look at a file that is none of its own
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
