"""Small photos beside the answers: once each, few, and never a reason to fail."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmtune.data.images import EncodedImage
from mmtune.evaluation.run import thumbnails
from mmtune.evaluation.run.thumbnails import SIDE, keep_thumbnails


def photo(colour: str) -> EncodedImage:
    stream = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(stream, "PNG")
    return EncodedImage.of(stream.getvalue())


def keep(file: Path, *photos: EncodedImage | None) -> None:
    questions: Any = [SimpleNamespace(images=() if one is None else (one,)) for one in photos]
    samples: Any = [SimpleNamespace(image=None if one is None else one.sha256) for one in photos]
    keep_thumbnails(file, questions, samples)


def names(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_each_photo_once_and_small(tmp_path: Path) -> None:
    red, blue, file = photo("red"), photo("blue"), tmp_path / "thumbnails" / "t.zip"
    keep(file, red, None, blue, red)
    assert names(file) == [f"{red.sha256}.jpg", f"{blue.sha256}.jpg"]
    with zipfile.ZipFile(file) as archive, Image.open(archive.open(f"{blue.sha256}.jpg")) as image:
        assert (image.format, image.size) == ("JPEG", (SIDE, 72))
        assert image.getpixel((9, 9))[2] > 200


def test_written_again_only_for_other_photos(tmp_path: Path) -> None:
    red, blue, file = photo("red"), photo("blue"), tmp_path / "t.zip"
    keep(file, red, blue)
    before = file.stat().st_mtime_ns
    keep(file, blue)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"damaged")
    keep(file, blue)
    assert names(file) == [f"{blue.sha256}.jpg"]


def test_no_photos_no_file_and_a_broken_one_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path / "t.zip", None, None)
    assert not (tmp_path / "t.zip").exists()
    monkeypatch.setattr(thumbnails, "MOST", 2)
    red, broken = photo("red"), EncodedImage(b"no picture", "0" * 64)
    keep(tmp_path / "t.zip", broken, red, photo("blue"))
    assert names(tmp_path / "t.zip") == [f"{red.sha256}.jpg"]
