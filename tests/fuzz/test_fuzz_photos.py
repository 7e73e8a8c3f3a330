"""Damaged photos and photos made to harm: decoded within bounds, or refused by the file and row that show them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_cases import Cases, numbered
from mutations import damaged
from pictures import png_saying
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.data.image_files import FORMATS
from mmtune.data.images import EncodedImage, ImageDecodeError, load_image
from mmtune.evaluation.contamination.images import image_print
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import TowerShape, preprocessing

KINDS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "SGI", "DDS",
         "QOI", "ICNS", "MPO", "PDF", "EPS", "IM", "MSP", "SPIDER", "XBM", "DIB", "BLP"]  # fmt: skip
MODES = ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "HSV"]
WHERE = "rows.jsonl, row 7"
SHAPE = TowerShape(num_tokens=4, width=8, size=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
PREPROCESS = [preprocessing(VisionOptions(fit=fit), SHAPE) for fit in ("pad", "crop", "squash")]  # type: ignore[arg-type]


def picture(width: int = 24, height: int = 17) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """A photo of every kind and mode that Pillow writes, with several frames, turned, compressed in every way."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            try:
                found.append(encoded(picture().convert(mode), kind))
            except (OSError, ValueError, KeyError, SystemError, AttributeError):
                continue  # there are no such pictures
    frames = [picture().rotate(angle) for angle in (0, 90, 180)]
    found += [
        encoded(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("GIF", "WEBP", "PNG", "TIFF")
    ]
    found += [
        encoded(picture(), "TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    found += [encoded(picture(), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    found += [encoded(picture(), "JPEG", progressive=True), encoded(picture(), "WEBP", lossless=True)]
    return found


def looked_at(data: bytes) -> torch.Tensor:
    """What training makes of a photo."""
    image = load_image(data, WHERE)
    return torch.stack([preprocess(image) for preprocess in PREPROCESS])


def looked_at_again(data: bytes) -> Any:
    """What the evaluator makes of a photo; one that cannot be decoded is counted, not raised."""
    photo = EncodedImage.of(data)
    image_print(photo)
    try:
        return photo.open()
    except ImageDecodeError:
        return None


def check(cases: Cases, case: str, data: bytes) -> bool:
    """Look at a photo in both ways; whether it was decoded."""
    outcome = cases.run(case, partial(looked_at, data), names=[WHERE])
    again = cases.run(case, partial(looked_at_again, data))
    if isinstance(outcome, torch.Tensor) and (outcome.shape != (3, 3, 28, 28) or not outcome.isfinite().all()):
        cases.fault(f"a photo that became {tuple(outcome.shape)}", case, "")
    if isinstance(outcome, UserError) == isinstance(again, Image.Image):
        cases.fault("training and evaluation do not agree", case, f"{outcome} {again}")
    return isinstance(outcome, torch.Tensor)


@numbered(250, 3000)
def test_damaged_photos(numbers: range, cases: Cases, photos: list[bytes]) -> None:
    for number in numbers:
        random_ = random.Random(f"photo {number}")
        data = damaged(random_.choice(photos), random_)
        check(cases, f"photo {number}: {data[:20]!r}", data)


@numbered(60, 600)
def test_bytes_after_a_magic_number(numbers: range, cases: Cases, photos: list[bytes]) -> None:
    for number in numbers:
        random_ = random.Random(f"magic {number}")
        data = random_.choice(photos)[: random_.choice((4, 8, 12, 30))] + random_.randbytes(random_.choice((0, 9, 500)))
        check(cases, f"magic {number}: {data[:40]!r}", data)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_that_was_cut_off_is_refused(kind: str, cases: Cases) -> None:
    whole = encoded(picture(), kind)
    assert check(cases, "whole", whole)
    for tenth in range(10):
        if check(cases, f"{kind}, {tenth} tenths", whole[: len(whole) * tenth // 10]):
            cases.fault("decoded", f"{kind}, {tenth} tenths", "")


def zeros(count: int) -> bytes:
    """That many zero bytes, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(
        [*(packer.compress(bytes(min(2**20, count - at))) for at in range(0, count, 2**20)), packer.flush()]
    )


def other_size(data: bytes, width: int, height: int, old: tuple[int, int] = (24, 17)) -> list[bytes]:
    """The photo with its size in the header replaced, in each way that sizes are written."""
    found = []
    for form in (">HH", "<HH", ">II", "<II", "<ii"):
        for order in (lambda a, b: (a, b), lambda a, b: (b, a)):
            was = struct.pack(form, *order(*old))
            if was in data and max(width, height) < 2 ** (8 * struct.calcsize(form[:2]) - 1):
                found.append(data.replace(was, struct.pack(form, *order(width, height)), 1))
    if b"24 17" in data:
        found.append(data.replace(b"24 17", f"{width} {height}".encode(), 1))
    return found


SIZES = [(0, 0), (0, 9), (9, 0), (1, 1), (100_000, 1), (1, 100_000), (100_000, 100_000), (20_000, 20_000),
         (2**31 - 1, 1), (65_535, 65_535), (16_383, 16_383), (30_000, 30_000), (32_767, 3)]  # fmt: skip


def test_sizes_that_headers_claim(cases: Cases, photos: list[bytes]) -> None:
    claimed = [one for photo in photos for size in SIZES for one in other_size(photo, *size)]
    claimed += [png_saying(*size) for size in SIZES]
    chosen = claimed if len(claimed) < 400 else random.Random(0).sample(claimed, 400)
    for number, data in enumerate(chosen):
        check(cases, f"size {number}: {data[:60]!r}", data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "20,000 squared": lambda: png_saying(20_000, 20_000, zeros(20_001 * 20_000)),
    "12,000 squared": lambda: png_saying(12_000, 12_000, zeros(12_001 * 12_000)),
    "100,000 squared, without content": lambda: png_saying(100_000, 100_000, zeros(10_000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_from_its_header(bomb: str, cases: Cases) -> None:
    data = BOMBS[bomb]()
    assert not check(cases, bomb, data)
    with pytest.raises(UserError, match="pixels"):
        load_image(data, WHERE)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (60_000, 7), (30_000, 30)])
def test_very_long_photos_take_little_memory(size: tuple[int, int], cases: Cases) -> None:
    width, height = size
    assert check(cases, f"{size}", png_saying(width, height, zeros((width + 1) * height)))


def test_content_that_is_more_than_its_header_says(cases: Cases) -> None:
    check(cases, "100 MB in 9 pixels", png_saying(3, 3, zeros(100_000_000)))
