"""Put a chunk of questions to a model. Only this module calls `generate` and `loglikelihood`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pydantic import FiniteFloat

from mmtune.data.images import ImageDecodeError
from mmtune.evaluation.run.returned import completions_of, figures_of
from mmtune.evaluation.tasks.render import Question, prompt_of
from mmtune.evaluation.tasks.task import Task
from mmtune.interfaces import Generator, Prompt, Scorer

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a question, before anything is made of it.

    Attributes:
        row: the question's.
        response: the raw text after the response prefix and the thought; empty where choices were compared.
        loglikelihoods: of each choice, None for a blank one or where that is no finite number; None if an answer was
            generated.
        error: why the question could not be asked, or None.
        finish_reason: why the generated answer ended, see `mmtune.Completion`; None where choices were compared.
        thought: what was thought before it.
        sample: its number among the answers to the question.
    """

    row: int
    response: str = ""
    loglikelihoods: tuple[FiniteFloat | None, ...] | None = None
    error: str | None = None
    finish_reason: str | None = None
    thought: str = ""
    sample: int = 0


def ask(model: Generator, task: Task, questions: Sequence[Question]) -> list[Answer]:
    """Ask a chunk of questions.

    Args:
        model: who is asked.
        task: the way of answering, response prefix and limits.
        questions: their photos are decoded together, those with the same bytes once.

    Returns:
        An answer per question, those first that could not be asked.
    """
    decoded: dict[str, Image.Image] = {}
    failed: list[Answer] = []
    askable: list[Question] = []
    for question in questions:
        try:
            for image in question.images:
                if image.sha256 not in decoded:
                    decoded[image.sha256] = image.open()
            askable.append(question)
        except ImageDecodeError as error:
            failed.append(Answer(question.row, error=str(error)))
    if not askable:
        return failed
    prompts = [prompt_of(task, q, [decoded[image.sha256] for image in q.images]) for q in askable]
    put = _generate if task.answering == "generate" else _compare
    return failed + put(model, task, askable, prompts)


def _generate(model: Generator, task: Task, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[Answer]:
    params = task.sampling
    returned = model.generate(prompts, params)
    completions = completions_of(returned, questions, params.n, f"task {task.name}: generate of {model.name}")
    return [
        Answer(question.row, one.text, finish_reason=one.finish_reason, thought=one.thought, sample=sample)
        for question, several in zip(questions, completions, strict=True)
        for sample, one in enumerate(several)
    ]


def _compare(model: Generator, task: Task, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[Answer]:
    choices = [[choice for choice in question.choices if choice.strip()] for question in questions]
    returned = cast(Scorer, model).loglikelihood(prompts, choices)
    likelihoods = figures_of(returned, questions, choices, f"task {task.name}: loglikelihood of {model.name}")
    return [
        Answer(question.row, loglikelihoods=_figures(question.choices, sums))
        for question, sums in zip(questions, likelihoods, strict=True)
    ]


def _figures(choices: Sequence[str], sums: Iterable[float]) -> tuple[float | None, ...]:
    """The figure of each choice; None for one that says nothing, and for what is no number to compare (or to write)."""
    given = iter(sums)
    figures = [next(given) if choice.strip() else math.nan for choice in choices]
    return tuple(float(figure) if math.isfinite(figure) else None for figure in figures)
