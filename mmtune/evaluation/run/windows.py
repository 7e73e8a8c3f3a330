"""Which rows are longer than a model can read, found before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from mmtune.common.errors import UserError, did_you_mean
from mmtune.evaluation.tasks.render import Question, prompt_of
from mmtune.evaluation.tasks.task import Task
from mmtune.interfaces import Generator, capabilities

PAST_WINDOW = ("refuse", "shorten")
_LISTED = 5


def check_past_window(rule: str) -> None:
    """Look whether there is such a rule.

    Raises:
        UserError: there is none.
    """
    if rule not in PAST_WINDOW:
        raise UserError(f"--past-window: unknown {rule!r}; {did_you_mean(rule, PAST_WINDOW)}")


def has_window(model: Generator) -> bool:
    """Whether a model tells how much it can read, and so takes `past_window`."""
    return "window" in capabilities(model) and cast(Any, model).window is not None


def rows_past_window(model: Generator, task: Task, questions: Sequence[Question], rule: str) -> dict[int, int]:
    """The rows whose prompt, with what must follow it, is longer than the model reads, with its tokens.

    What must follow is the longest choice; of an answer its first token, or where prompts are shortened all that it may
    have, at most half of the window.
    """
    if not has_window(model):
        return {}
    reader = cast(Any, model)
    found: dict[int, int] = reader.too_long(
        [prompt_of(task, question, [None] * len(question.images)) for question in questions],
        choices=None if task.answering == "generate" else [question.choices for question in questions],
        params=task.sampling,
    )
    return {questions[number].row: tokens for number, tokens in found.items()}


def described(model: Generator, task: str, rows: Mapping[int, int], rule: str) -> str:
    """One line on the rows of a task that are past the window."""
    listed = ", ".join(f"row {row} ({tokens:,} tokens)" for row, tokens in list(rows.items())[:_LISTED])
    listed += ", …" if len(rows) > _LISTED else ""
    count = "1 row leaves" if len(rows) == 1 else f"{len(rows)} rows leave"
    done = "; shortened by the beginning" if rule == "shorten" else ""
    window = getattr(model, "window", 0)
    return f"task {task}: {count} no room in the {window:,} tokens that {model.name} reads: {listed}{done}"


def refuse_rows(model: Generator, past: Mapping[str, Mapping[int, int]]) -> None:
    """Refuse rows that are past the window, by task.

    Raises:
        UserError: there are such.
    """
    lines = [described(model, task, rows, "refuse") for task, rows in past.items() if rows]
    if lines:
        raise UserError(f"{'; '.join(lines)}; give --past-window shorten, or leave them out with the task's `filter`")
