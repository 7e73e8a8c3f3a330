"""Samples on the page of a report: the same questions, answered by every variant, with thumbnails of images."""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.analysis.records import Sample, read_answers
from mmtune.analysis.study import Study
from mmtune.common.text import visible

PROMPT_CHARACTERS = 3000
ANSWER_CHARACTERS = 1000
IMAGE_BYTES = 6 * 2**20  # limit for all images on a page
_LARGEST_IMAGE = 2**18  # limit for one image, in bytes; thumbnails have a few thousand
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples on a page.

    Attributes:
        data: data of the page's script: `variants`, `tasks` (name, modality), `rows` and `images` (base64 of JPEG
            files). A row is task (an index), id, prompt, target, image (an index or -1) and one answer per variant:
            prediction (null where none was found), raw response where it differs (else empty), score. An answer is null
            where the variant has no sample of this id with the same prompt and target.
        shown: for each task, the number of samples on the page and in the evaluation.
        images: number of distinct images on the page, and number of those that its samples have.
    """

    data: dict[str, Any]
    shown: dict[str, tuple[int, int]]
    images: tuple[int, int]


def collect(study: Study, per_task: int) -> SampleSet:
    """Collect the first samples of each task, whatever their scores, with the answers of each variant's first run.

    Args:
        study: the variants and their tasks.
        per_task: maximum number of samples of each task.

    Raises:
        UserError: a file of samples is missing or damaged.
    """
    folders = [variant.runs[0].evaluation for variant in study.variants]
    rows: list[list[Any]] = []
    shown = {}
    wanted: dict[str, str] = {}
    for number, task in enumerate(study.tasks):
        first, *others = (read_answers(folder, task).samples for folder in folders)
        chosen = list(first.values())[:per_task]
        shown[task] = (len(chosen), len(first))
        for sample in chosen:
            same = [sample, *(_same_question(sample, other.get(sample.id)) for other in others)]
            prompt = _begin_cut(visible(sample.prompt))
            image = sample.image
            if image is not None:
                wanted.setdefault(image, task)
            answers = [None if one is None else _answer(one) for one in same]
            target = _end_cut(visible(sample.target))
            rows.append([number, visible(str(sample.id)), prompt, target, image, answers])
    images = _images(folders, wanted)
    places = {image: place for place, image in enumerate(images)}
    for row in rows:
        row[4] = places.get(row[4], -1)
    data = {
        "variants": [visible(variant.name) for variant in study.variants],
        "tasks": [[visible(task), modality] for task, modality in study.tasks.items()],
        "rows": rows,
        "images": [base64.b64encode(image).decode() for image in images.values()],
    }
    return SampleSet(data, shown, (len(images), len(wanted)))


def _same_question(one: Sample, other: Sample | None) -> Sample | None:
    return other if other is not None and (other.prompt, other.target) == (one.prompt, one.target) else None


def _answer(sample: Sample) -> list[Any]:
    found = None if sample.prediction is None else _end_cut(visible(sample.prediction))
    return [found, _end_cut(visible(sample.more)), round(sample.score, 4)]


def _begin_cut(text: str) -> str:
    """Cut the beginning of a text that is too long: the question of a prompt is at its end."""
    return text if len(text) <= PROMPT_CHARACTERS else "…" + text[1 - PROMPT_CHARACTERS :]


def _end_cut(text: str) -> str:
    return text if len(text) <= ANSWER_CHARACTERS else text[: ANSWER_CHARACTERS - 1] + "…"


def _images(folders: Iterable[Path], wanted: dict[str, str]) -> dict[str, bytes]:
    """Read the thumbnails that the evaluations kept, by name, up to IMAGE_BYTES in all; missing ones are left out."""
    found: dict[str, bytes] = {}
    left = IMAGE_BYTES
    for folder in folders:
        for task in dict.fromkeys(wanted.values()):
            names = [name for name, of in wanted.items() if of == task and name not in found]
            for name, image in _read_images(folder / "thumbnails" / f"{task}.zip", names):
                if image.startswith(_JPEG) and len(image) <= left:
                    found[name] = image
                    left -= len(image)
    return found


def _read_images(file: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of images in a ZIP file.

    Images that are missing, compressed or too large are skipped. A missing or damaged file ends the iteration without
    an error, since a page does not need its images.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for name in names:
                member = members.get(f"{name}.jpg")
                # uncompressed, as the evaluator writes them; compressed data can expand a thousand times
                if member and member.compress_type == zipfile.ZIP_STORED and member.file_size <= _LARGEST_IMAGE:
                    yield name, archive.read(member)
    except Exception:  # zipfile raises many types, such as for names that are not UTF-8 or members with a password
        return
