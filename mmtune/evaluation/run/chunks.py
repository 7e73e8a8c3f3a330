"""Which questions are put to a model together, so that what they share is computed once."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Sequence

from mmtune.evaluation.tasks.render import Question

QUESTIONS = 128  # in a chunk: enough to fill batches of similar length, few enough to lose little to a kill
IMAGES = 64  # distinct ones in a chunk: decoded together, they are what takes the memory
SHARED = 100  # characters beyond what all prompts begin with, from which on a common prefix makes a family
_IMAGE_AS_CHARACTERS = 2000  # about what a photo's tokens are in text, to tell long questions from short ones

Chunk = tuple[Question, ...]


def plan_chunks(questions: Sequence[Question]) -> list[Chunk]:
    """Divide a task's questions into chunks.

    Questions that show the same photo first, or begin with the same passage, are a family. A family stays together in
    one chunk, unless it is larger than a chunk. The families with the longest questions come first: what does not fit
    in memory shows at once. The chunks follow from the questions alone, so that an evaluation that goes on after a
    kill asks, and pays for, the same chunks.

    Args:
        questions: of one task.
    """
    families = sorted(_families(questions), key=lambda family: (-max(map(_length, family)), family[0].row))
    pieces = [piece for family in families for piece in _pack([question] for question in family)]
    return [tuple(chunk) for chunk in _pack(pieces)]


def _families(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions by what they begin with; within a family those next to each other share most."""
    prompts = [question.prompt for question in questions if not question.images]
    common = os.path.commonprefix(prompts)  # noqa: RUF071  # of texts, not of paths
    families: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        start = question.images[0].sha256 if question.images else question.prompt[: len(common) + SHARED]
        families.setdefault(("photo" if question.images else "text", start), []).append(question)
    return [sorted(family, key=_order) for family in families.values()]


def _pack(units: Iterable[Sequence[Question]]) -> list[list[Question]]:
    """Join units, in their order, into lists that are no larger than a chunk may be."""
    packed: list[list[Question]] = []
    for unit in units:
        if packed and _fits([*packed[-1], *unit]):
            packed[-1].extend(unit)
        else:
            packed.append(list(unit))
    return packed


def _fits(questions: Sequence[Question]) -> bool:
    return len(questions) <= QUESTIONS and len({p.sha256 for q in questions for p in q.images}) <= IMAGES


def _order(question: Question) -> tuple[tuple[str, ...], str, int]:
    return tuple(image.sha256 for image in question.images), question.prompt, question.row


def _length(question: Question) -> int:
    return len(question.prompt) + _IMAGE_AS_CHARACTERS * len(question.images)
