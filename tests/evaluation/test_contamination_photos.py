"""Which photos are the same."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from mmtune.data.images import EncodedImage
from mmtune.evaluation.contamination.images import ImageIndex, ImagePrint, image_print
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.task import load_task


def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> EncodedImage:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return EncodedImage.of(stream.getvalue())


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with as much at every scale as photos have."""
    random = np.random.default_rng(seed)
    picture = np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(random.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=float) / cells
    picture -= picture.min()
    return Image.fromarray((picture * 255 / picture.max()).astype(np.uint8))


def drawing(shape: str, box: tuple[int, int, int, int], colour: str, background: str = "white") -> Image.Image:
    """One shape on a plain ground of 64 by 64 pixels, as in easy-VQA."""
    picture = Image.new("RGB", (64, 64), background)
    getattr(ImageDraw.Draw(picture), shape)(box, fill=colour)
    return picture


def seen(index: ImageIndex, photo: EncodedImage) -> list[tuple[int, str]]:
    found = image_print(photo)
    return [] if found is None else [(match.number, match.kind) for match in index.find(found)]


def indexed(*pictures: Image.Image) -> ImageIndex:
    prints = [image_print(encoded(picture)) for picture in pictures]
    return ImageIndex([found for found in prints if found is not None])


COPIES: dict[str, Callable[[Image.Image], EncodedImage]] = {
    "JPEG": lambda p: encoded(p, "JPEG", quality=90),
    "low quality": lambda p: encoded(p, "JPEG", quality=30),
    "WebP": lambda p: encoded(p, "WEBP", quality=70),
    "half": lambda p: encoded(p.resize((p.width // 2, p.height // 2)), "JPEG", quality=85),
    "double": lambda p: encoded(p.resize((p.width * 2, p.height * 2))),
    "square": lambda p: encoded(p.resize((224, 224), Image.Resampling.LANCZOS), "JPEG", quality=85),
    "twice": lambda p: encoded(Image.open(io.BytesIO(encoded(p, "JPEG", quality=75).data)).resize((200, 150))),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_photo_compressed_or_scaled_again_is_found(copy: str) -> None:
    scenes = [scene(seed) for seed in range(12)]
    index = indexed(*scenes)
    for number, picture in enumerate(scenes):
        assert seen(index, COPIES[copy](picture)) == [(number, "near photo")]


@given(seeds=st.sets(st.integers(100, 100_000), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_other_photos_are_not(seeds: set[int]) -> None:
    first, *others = sorted(seeds)
    index = indexed(*map(scene, others))
    assert seen(index, encoded(scene(first))) == []


def test_the_strictest_kind_that_holds() -> None:
    picture = scene(1)
    index = ImageIndex([p for p in (image_print(encoded(picture)),) if p])
    assert seen(index, encoded(picture)) == [(0, "same file")]
    assert seen(index, encoded(picture, "BMP")) == [(0, "same pixels")]
    assert seen(index, encoded(picture, "JPEG", quality=95)) == [(0, "near photo")]


def test_a_photo_turned_by_its_camera_is_its_upright_copy() -> None:
    picture = scene(2)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    stream = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    turned = EncodedImage.of(stream.getvalue())
    assert seen(indexed(picture), turned) == [(0, "same pixels")]


DRAWINGS = [
    drawing(shape, (x, y, x + size, y + size), colour)
    for shape in ("rectangle", "ellipse")
    for size in (14, 24)
    for x in (4, 20, 34)
    for y in (6, 30)
    for colour in ("red", "blue", "black")
]


def test_drawings_do_not_collide() -> None:
    index = indexed(*DRAWINGS)
    for number, picture in enumerate(DRAWINGS):
        assert seen(index, encoded(picture)) == [(number, "same file")]
        assert seen(index, encoded(picture, "JPEG", quality=95)) == [(number, "near photo")]


def test_a_drawing_moved_by_a_pixel_or_grown_by_one_is_another() -> None:
    index = indexed(drawing("rectangle", (20, 20, 40, 40), "red"))
    for box in ((21, 20, 41, 40), (20, 21, 40, 41), (20, 20, 42, 42)):
        assert seen(index, encoded(drawing("rectangle", box, "red"))) == []


def test_one_map_with_other_labels_is_another() -> None:
    """Their hashes differ by nothing at all, or by little."""
    ground = scene(3).filter(ImageFilter.GaussianBlur(9))
    labelled = []
    for x, y in ((40, 40), (200, 60), (120, 180)):
        labelled.append(ground.copy())
        ImageDraw.Draw(labelled[-1]).rectangle((x, y, x + 30, y + 10), fill="white")
    index = indexed(*labelled)
    for number, picture in enumerate(labelled):
        assert seen(index, COPIES["half"](picture)) == [(number, "near photo")]


@pytest.mark.parametrize("colour", ["white", "black", "red"])
def test_a_picture_of_one_colour_is_no_evidence(colour: str) -> None:
    assert image_print(encoded(Image.new("RGB", (64, 64), colour))) is None


def test_pictures_of_hardly_any_contrast() -> None:
    def speckled(x: int) -> Image.Image:
        picture = Image.new("RGB", (64, 64), (250, 250, 250))
        picture.putpixel((x, 3), (251, 250, 250))
        return picture

    index = indexed(speckled(1), speckled(50))
    assert seen(index, encoded(speckled(30))) == []
    assert seen(index, encoded(speckled(50))) == [(1, "same file")]


def test_what_cannot_be_decoded_is_compared_by_its_bytes() -> None:
    damaged = EncodedImage.of(b"no picture")
    index = ImageIndex([ImagePrint(damaged.sha256)])
    assert seen(index, damaged) == [(0, "same file")]
    assert seen(index, EncodedImage.of(b"nor this")) == []
    assert seen(ImageIndex([]), damaged) == []


def test_real_photos_and_drawings(shared_data: Path) -> None:
    """No two of COCO are alike; copies of any picture are found."""
    photos = [EncodedImage(p.read_bytes(), p.stem) for p in sorted((shared_data / "visual" / "images").iterdir())[:120]]
    for name in ("easy_vqa", "mathvision"):
        if not any((shared_data / "hub" / load_task(name).dataset.path).rglob("*.parquet")):
            pytest.skip(f"needs {name} in ../shared/data")
        column = load_task(name).images[0]
        rows = load_rows(load_task(name), shared_data, limit=400).rows
        photos += list({row[column].sha256: row[column] for _, row in rows}.values())[:40]
    prints = [found for photo in photos if (found := image_print(photo)) is not None]
    index = ImageIndex(prints)
    by_file = {found.encoded: number for number, found in enumerate(prints)}
    for photo in photos:
        if photo.sha256 in by_file:
            number = by_file[photo.sha256]
            assert seen(index, photo) == [(number, "same file")]
            assert seen(index, encoded(photo.open(), "JPEG", quality=90)) in (
                [(number, "near photo")],
                [(number, "same pixels")],
            )
