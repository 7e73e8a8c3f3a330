"""Put the questions of a task to a model. Only this module calls `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mmtune.evaluation.answers import matches, parse
from mmtune.evaluation.dataset import Photo, PhotoError
from mmtune.evaluation.prompting import Question
from mmtune.evaluation.protocol import AnsweringModel
from mmtune.evaluation.store import Sample
from mmtune.evaluation.task import Task

if TYPE_CHECKING:
    from PIL import Image

_QUESTIONS_AT_ONCE = 64  # handed to the model together; only their photos are decoded
_PHOTO_AS_CHARACTERS = 2000  # about what a photo's tokens are in text, to sort questions by length


def ask(
    model: AnsweringModel,
    task: Task,
    questions: Sequence[Question],
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Sample]:
    """Ask all questions of a task and judge the answers.

    Args:
        model: who is asked.
        task: primer, limits and extraction.
        questions: in the order of the rows.
        batch_tokens: tokens the model may compute at once.
        advance: told how many questions more are answered.

    Returns:
        A sample per question, in the same order.
    """
    samples: dict[int, Sample] = {}
    for chunk in _chunks(questions):
        for question, response, error in _answers(model, task, chunk, batch_tokens):
            samples[question.row] = _judge(task, question, response, error)
        advance(len(chunk))
    return [samples[question.row] for question in questions]


def _chunks(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Chunks of questions of similar length, the longest first: what does not fit in memory shows at once."""

    def order(question: Question) -> tuple[int, int]:
        return -len(question.prompt) - _PHOTO_AS_CHARACTERS * len(question.photos), question.row

    ordered = sorted(questions, key=order)
    for start in range(0, len(ordered), _QUESTIONS_AT_ONCE):
        yield ordered[start : start + _QUESTIONS_AT_ONCE]


def _answers(
    model: AnsweringModel, task: Task, questions: Sequence[Question], batch_tokens: int
) -> Iterator[tuple[Question, str, str | None]]:
    """Every question with its raw response, or with the reason why it could not be asked."""
    decoded: dict[str, Image.Image] = {}
    askable: list[Question] = []
    for question in questions:
        try:
            for photo in question.photos:
                if photo.sha256 not in decoded:
                    decoded[photo.sha256] = photo.open()
            askable.append(question)
        except PhotoError as error:
            yield question, "", str(error)
    if not askable:
        return
    images = [[decoded[photo.sha256] for photo in question.photos] for question in askable]
    responses = model.generate(
        [question.prompt for question in askable],
        images if any(images) else None,
        primer=task.primer,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        batch_tokens=batch_tokens,
    )
    for question, response in zip(askable, responses, strict=True):
        yield question, response, None


def _judge(task: Task, question: Question, response: str, error: str | None) -> Sample:
    prediction = None if error else parse(response, task.extract, question.kind, question.options)
    return Sample(
        id=question.row,
        prompt=question.prompt,
        response=response,
        prediction=prediction,
        target=question.target,
        score=float(matches(prediction, question.target, task.extract, question.kind)),
        image=_digest(question.photos),
        group=question.group,
        error=error,
    )


def _digest(photos: Sequence[Photo]) -> str | None:
    if len(photos) > 1:
        return hashlib.sha256("".join(photo.sha256 for photo in photos).encode()).hexdigest()
    return photos[0].sha256 if photos else None
