"""Small copies of the photos that were asked about, kept beside the answers for whoever reads them later."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmtune.common.files import atomic_path
from mmtune.data.images import EncodedImage, ImageDecodeError
from mmtune.evaluation.run.results import Sample
from mmtune.evaluation.tasks.render import Question

SIDE = 96
MOST = 1000


def keep_thumbnails(file: Path, questions: Sequence[Question], samples: Sequence[Sample]) -> None:
    """Write the first photo of each of the first questions as a JPEG, unless they are there from before.

    The file is a ZIP of `<image>.jpg`, `image` as in the sample. At most `MOST` distinct photos, of at most `SIDE`
    pixels a side: some milliseconds each and a few megabytes in all, however large the set. Photos that cannot be
    decoded are left out.

    Args:
        file: `thumbnails/<task>.zip`.
        questions: in the order of the samples.
        samples: that name the photos.
    """
    first: dict[str, EncodedImage] = {}
    for question, sample in zip(questions, samples, strict=True):
        if sample.image is not None and question.images and len(first) < MOST:
            first.setdefault(sample.image, question.images[0])
    if not first or _holds(file, first):
        return
    with atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, image in first.items():
            try:
                small = image.open()
            except ImageDecodeError:
                continue
            small.thumbnail((SIDE, SIDE), reducing_gap=2.0)
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=75)
            # without a date: a ZIP cannot hold those before 1980, where a machine's clock may begin
            archive.writestr(zipfile.ZipInfo(f"{name}.jpg"), stream.getvalue())


def _holds(file: Path, names: Iterable[str]) -> bool:
    """Whether an earlier evaluation has written these photos."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {f"{name}.jpg" for name in names} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
