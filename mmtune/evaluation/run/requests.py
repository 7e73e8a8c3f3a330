"""Put a chunk of questions to a model. Only this module calls `generate` and `loglikelihood`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.evaluation.run.load_model import AnsweringModel
from mmtune.evaluation.run.returned import figures_of, texts_of
from mmtune.evaluation.run.windows import has_window
from mmtune.evaluation.tasks.render import Question
from mmtune.evaluation.tasks.rows import PhotoError
from mmtune.evaluation.tasks.task import Task

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a question, before anything is made of it.

    Attributes:
        row: the question's.
        response: the raw text after the response_prefix, a thought before it; empty where choices were compared.
        loglikelihoods: of each choice, None for a blank one or where that is no finite number; None if an answer was
            generated.
        error: why the question could not be asked, or None.
        finish_reason: why the generated answer ended: `stop`, `length` or `window`; None where the model does not tell.
    """

    row: int
    response: str = ""
    loglikelihoods: tuple[float | None, ...] | None = None
    error: str | None = None
    finish_reason: str | None = None


def ask(
    model: AnsweringModel, task: Task, questions: Sequence[Question], *, batch_tokens: int, past_window: str = "refuse"
) -> list[Answer]:
    """Ask a chunk of questions.

    Args:
        model: who is asked.
        task: the way of answering, response_prefix and limits.
        questions: their photos are decoded together, those with the same bytes once.
        batch_tokens: tokens the model may compute at once.
        past_window: what a model that has a window does with longer prompts.

    Returns:
        An answer per question, those first that could not be asked.
    """
    decoded: dict[str, Image.Image] = {}
    failed: list[Answer] = []
    askable: list[Question] = []
    for question in questions:
        try:
            for photo in question.photos:
                if photo.sha256 not in decoded:
                    decoded[photo.sha256] = photo.open()
            askable.append(question)
        except PhotoError as error:
            failed.append(Answer(question.row, error=str(error)))
    if not askable:
        return failed
    photos = [[decoded[photo.sha256] for photo in question.photos] for question in askable]
    put = _generate if task.answering == "generate" else _compare
    options = {"batch_tokens": batch_tokens} | ({"past_window": past_window} if has_window(model) else {})
    return failed + put(model, task, askable, photos if any(photos) else None, options)


def _generate(
    model: AnsweringModel,
    task: Task,
    questions: Sequence[Question],
    images: Sequence[Sequence[Image.Image]] | None,
    options: Mapping[str, Any],
) -> list[Answer]:
    thinking = {"thinking_budget": task.thinking_budget} if task.thinking_budget else {}
    responses = model.generate(
        [question.prompt for question in questions],
        images,
        response_prefix=task.response_prefix,
        max_tokens=task.max_tokens,
        stop=task.stop,
        **options,
        **thinking,
    )
    texts = texts_of(responses, questions, f"task {task.name}: generate of {model.name}")
    return [
        Answer(question.row, str(text), finish_reason=getattr(text, "finish_reason", None))
        for question, text in zip(questions, texts, strict=True)
    ]


def _compare(
    model: AnsweringModel,
    task: Task,
    questions: Sequence[Question],
    images: Sequence[Sequence[Image.Image]] | None,
    options: Mapping[str, Any],
) -> list[Answer]:
    choices = [[choice for choice in question.choices if choice.strip()] for question in questions]
    likelihoods = model.loglikelihood(
        [question.prompt for question in questions],
        choices,
        images,
        response_prefix=task.response_prefix,
        **options,
    )
    likelihoods = figures_of(likelihoods, questions, choices, f"task {task.name}: loglikelihood of {model.name}")
    return [
        Answer(question.row, loglikelihoods=_figures(question.choices, sums))
        for question, sums in zip(questions, likelihoods, strict=True)
    ]


def _figures(choices: Sequence[str], sums: Iterable[float]) -> tuple[float | None, ...]:
    """The figure of each choice; None for one that says nothing, and for what is no number to compare (or to write)."""
    given = iter(sums)
    figures = [next(given) if choice.strip() else math.nan for choice in choices]
    return tuple(float(figure) if math.isfinite(figure) else None for figure in figures)
