"""What a model gave back, held against what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mmtune.common.errors import UserError, brief
from mmtune.evaluation.tasks.render import Question
from mmtune.interfaces import Completion

T = TypeVar("T")


def completions_of(returned: Any, questions: Sequence[Question], n: int, who: str) -> list[list[Completion]]:
    """The completions of each question.

    Args:
        returned: what `generate` gave.
        questions: what it was asked.
        n: completions of each.
        who: task, model and method, for messages.

    Raises:
        UserError: it is not so many `Completion`s per question.
    """

    def several(given: Any, question: Question) -> list[Completion]:
        many = _listed(given)
        if many is None or len(many) != n or not all(isinstance(one, Completion) for one in many):
            wanted = "a list of one mmtune.Completion" if n == 1 else f"a list of {n} mmtune.Completion"
            raise UserError(f"{who} gave {_shown(given)} for row {question.row}; it must give {wanted}")
        if any(not isinstance(one.text, str) or not isinstance(one.thought, str) for one in many):
            raise UserError(f"{who} gave {_shown(given)} for row {question.row}; its texts must be strings")
        return many

    return _for_each(returned, questions, who, "lists of completions", several)


def figures_of(
    returned: Any, questions: Sequence[Question], asked: Sequence[Sequence[str]], who: str
) -> list[list[float]]:
    """The log-likelihoods, as a list of floats per question.

    Args:
        returned: what `loglikelihood` gave.
        questions: what it was asked.
        asked: the choices of each.
        who: task, model and method, for messages.

    Raises:
        UserError: it is not one number per choice.
    """
    choices = {question.row: len(texts) for question, texts in zip(questions, asked, strict=True)}

    def figures(given: Any, question: Question) -> list[float]:
        where = f"{who} gave {_shown(given)} for row {question.row}"
        many = _listed(given)
        if many is None or len(many) != choices[question.row]:
            raise UserError(f"{where}; it must give a list of {choices[question.row]} numbers, one per choice")
        try:
            return [_number(one) for one in many]
        except (TypeError, ValueError):
            raise UserError(f"{where}; it must give numbers") from None

    return _for_each(returned, questions, who, "lists of log-likelihoods", figures)


def _for_each(
    returned: Any, questions: Sequence[Question], who: str, what: str, read: Callable[[Any, Question], T]
) -> list[T]:
    many = _listed(returned)
    if many is None:
        raise UserError(f"{who} gave {_shown(returned)}; it must give a list of {len(questions)} {what}")
    if len(many) != len(questions):
        raise UserError(f"{who} gave {len(many)} {what} for {len(questions)} prompts; it must give one for each")
    return [read(one, question) for one, question in zip(many, questions, strict=True)]


def _listed(value: Any) -> list[Any] | None:
    """The entries of a list, an array or anything like it; None for a text or what has no entries."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    try:
        return list(value)
    except TypeError:  # an array without dimensions
        return None


def _number(value: Any) -> float:
    """A number of Python, numpy or torch."""
    if value is None or isinstance(value, str | bytes):
        raise TypeError
    return float(value)


def _shown(value: Any) -> str:
    return brief(" ".join(repr(value).split()), 60)
