"""The samples that a page shows: the same questions, answered by every variant, with small photos."""

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
IMAGE_BYTES = 6 * 2**20  # of all photos on a page
_LARGEST_IMAGE = 2**18  # bytes of one, of which those that are kept have a few thousand
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class SampleSet:
    """What a page shows.

    Attributes:
        data: for the page's script: `variants`, `tasks` (name, modality), `rows` and `images` (base64 of JPEG files). A
            row is task, id, prompt, target, photo (an index or -1) and one answer per variant: prediction, raw response
            where it says more, score; null where the variant was asked something else under this id.
        shown: how many samples of each task are there, and how many there are in all.
        images: how many photos are there, and how many the samples shown have.
    """

    data: dict[str, Any]
    shown: dict[str, tuple[int, int]]
    images: tuple[int, int]


def collect(study: Study, per_task: int) -> SampleSet:
    """The first samples of each task, as the first run of every variant answered them; none is picked by its outcome.

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
    """The end of a text that is too long, where a prompt has its question."""
    return text if len(text) <= PROMPT_CHARACTERS else "…" + text[1 - PROMPT_CHARACTERS :]


def _end_cut(text: str) -> str:
    return text if len(text) <= ANSWER_CHARACTERS else text[: ANSWER_CHARACTERS - 1] + "…"


def _images(folders: Iterable[Path], wanted: dict[str, str]) -> dict[str, bytes]:
    """The small photos that the evaluations kept, as far as they are there and the page has room."""
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
    """Photos by name; nothing from a file that is missing, damaged or compressed, since a page does without them."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for name in names:
                member = members.get(f"{name}.jpg")
                # as the evaluator writes them; what is compressed may be a thousand times as large
                if member and member.compress_type == zipfile.ZIP_STORED and member.file_size <= _LARGEST_IMAGE:
                    yield name, archive.read(member)
    except Exception:  # zipfile raises what it meets: names that are not UTF-8, members with a password
        return
