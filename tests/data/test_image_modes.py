"""Pictures of every depth and kind of color, to the exact pixel."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtune.common.errors import RowError
from mmtune.data.images import load_image, to_rgb


def tiff(values: np.ndarray, *, big: bool, kind: int) -> bytes:
    """A TIFF of one gray channel; `kind` is 1 for unsigned, 2 for signed and 3 for floating-point numbers."""
    end = ">" if big else "<"
    data = values.astype(values.dtype.newbyteorder(end)).tobytes()
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    begin = 8 + 2 + 12 * 10 + 4
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, begin), (277, 3, 1),
            (278, 4, height), (279, 4, len(data)), (339, 3, kind)]  # fmt: skip
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{end}IH", 8, len(tags))
    for tag, size, value in tags:
        head += struct.pack(f"{end}HHI", tag, size, 1) + struct.pack(
            f"{end}HH" if size == 3 else f"{end}I", value, *[0] * (size == 3)
        )
    return head + bytes(4) + data


def png(width: int, depth: int, color: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in chunks) + body + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> list[Any]:
    image = load_image(data, "here")
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]


def gray(*shades: int) -> list[tuple[int, int, int]]:
    return [(shade,) * 3 for shade in shades]


SIXTEEN = (np.array([[0, 1, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16), [0, 0, 0, 1, 127, 128, 255])
WIDE = {
    "16 in 16": (*SIXTEEN, 1),
    "8 in 32": (np.array([[0, 1, 128, 255]], np.int32), [0, 1, 128, 255], 2),
    "16 in 32": (SIXTEEN[0].astype(np.int32), SIXTEEN[1], 2),
    "15 in signed 16": (np.array([[0, 256, 0x7FFF]], np.int16), [0, 1, 127], 2),
    "floats to 1": (np.array([[0, 0.1, 0.5, 1]], np.float32), [0, 26, 128, 255], 3),
    "floats to 255": (np.array([[0, 0.4, 1.6, 127.6, 255]], np.float32), [0, 0, 2, 128, 255], 3),
    "floats to 65535": (np.array([[0, 256, 32768.5, 65535]], np.float32), [0, 1, 128, 255], 3),
}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("name", WIDE)
def test_wide_numbers_of_tiffs(name: str, big: bool) -> None:
    values, shades, kind = WIDE[name]
    assert pixels(tiff(values, big=big, kind=kind)) == gray(*shades)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[-1, 5]], np.float32), 3),
        (np.array([[0, np.nan]], np.float32), 3),
        (np.array([[0, np.inf]], np.float32), 3),
        (np.array([[0, -1]], np.int16), 2),
        (np.array([[0, 2**16]], np.int32), 2),
        (np.array([[0, 2**32 - 1]], np.uint32), 1),
    ],
)
def test_numbers_without_a_rule_are_refused(values: np.ndarray, kind: int) -> None:
    with pytest.raises(RowError, match=r"here: the photo .* decoded: its values go from .*; save it with 8 bits"):
        pixels(tiff(values, big=False, kind=kind))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_pictures_in_memory(mode: str) -> None:
    order = ">" if mode.endswith("B") else "<"
    image = Image.frombytes(mode, (3, 1), np.array([0, 0x1234, 0xFFFF], f"{order}u2").tobytes())
    assert [to_rgb(image).getpixel((x, 0)) for x in range(3)] == gray(0, 0x12, 255)


@pytest.mark.parametrize(
    ("color", "sample", "shade"),
    [
        (0, (0x8001,), (128,) * 3),
        (2, (0xFFFF, 0x8001, 0x00FF), (255, 128, 0)),
        (4, (0x4000, 0xFFFF), (64,) * 3),
        (4, (0x0000, 0x0000), (255,) * 3),
        (6, (0x1200, 0x3400, 0x5600, 0xFFFF), (0x12, 0x34, 0x56)),
        (6, (0x1200, 0x3400, 0x5600, 0x0000), (255, 255, 255)),
    ],
)
def test_pngs_of_16_bits(color: int, sample: tuple[int, ...], shade: tuple[int, ...]) -> None:
    assert pixels(png(1, 16, color, np.array(sample, ">u2").tobytes())) == [shade]


TRANSPARENT = {
    "RGBA": (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), (255, 255, 255)),
    "RGBA, half": (Image.new("RGBA", (1, 1), (0, 100, 255, 128)), (127, 177, 255)),
    "RGBA, opaque": (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), (1, 2, 3)),
    "LA": (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
    "LA, half": (Image.new("LA", (1, 1), (0, 51)), (204, 204, 204)),
    "LA, opaque": (Image.new("LA", (1, 1), (7, 255)), (7, 7, 7)),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pictures_stand_on_white(name: str, kind: str) -> None:
    image, shade = TRANSPARENT[name]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(saved(image, kind, **options)) == [shade]


@pytest.mark.parametrize(
    ("data", "shades"),
    [
        (png(2, 8, 0, b"\0\7", (b"tRNS", b"\0\7")), gray(0, 255)),
        (png(2, 8, 2, b"\0\0\0\7\7\7", (b"tRNS", bytes(6))), gray(255, 7)),
        (png(2, 16, 0, b"\0\0\x80\0", (b"tRNS", b"\0\0")), gray(255, 128)),
        (png(2, 1, 0, b"\x40", (b"tRNS", b"\0\0")), gray(255, 255)),
        (png(2, 8, 3, b"\0\1", (b"PLTE", b"\0\0\0\7\7\7"), (b"tRNS", b"\0")), gray(255, 7)),
        (png(2, 8, 3, b"\0\1", (b"PLTE", b"\0\0\0\7\7\7"), (b"tRNS", b"\x33\xff")), gray(204, 7)),
        (png(2, 8, 3, b"\0\1", (b"PLTE", b"\0\0\0\7\7\7")), gray(0, 7)),
    ],
    ids=["gray", "color", "16 bits", "1 bit", "palette", "half a palette", "opaque palette"],
)  # fmt: skip
def test_a_color_that_stands_for_nothing(data: bytes, shades: Any) -> None:
    assert pixels(data) == shades


def test_a_palette_with_alpha_in_memory() -> None:
    image = Image.new("PA", (1, 1))
    image.putpixel((0, 0), (0, 0))
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_a_drawing_on_nothing_is_black_on_white() -> None:
    image = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 5, 9))
    seen = np.asarray(load_image(saved(image, "PNG"), "here"))
    assert (seen[:, 4] == 0).all()
    assert (np.delete(seen, 4, axis=1) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "shade"), [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))]
)
def test_cmyk_also_as_adobe_inverts_it(kind: str, ink: Any, shade: Any) -> None:
    data = saved(Image.new("CMYK", (8, 8), ink), kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert (b"Adobe" in data) == (kind == "JPEG")
    assert pixels(data) == [shade] * 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "LAB"])
def test_other_kinds_are_as_pillow_converts_them(mode: str) -> None:
    image = (
        Image.effect_noise((4, 4), 90).convert("RGB").convert(mode)
        if mode != "LAB"
        else Image.new("LAB", (4, 4), (90, 5, 250))
    )
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
