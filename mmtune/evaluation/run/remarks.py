"""What is to be known of a task's rows and answers, each in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmtune.common.errors import brief
from mmtune.evaluation.run.results import Sample
from mmtune.evaluation.tasks.render import Question

_LISTED = 10


def rows_named(rows: Sequence[int]) -> str:
    """`row 3`, or `rows 3, 5, …`, of very many the first."""
    listed = ", ".join(map(str, rows[:_LISTED])) + (", …" if len(rows) > _LISTED else "")
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}"


def of_questions(task: str, questions: Sequence[Question]) -> Iterator[str]:
    """What is odd about the rows, before they are asked."""
    texts = {q.row: [o.strip() for o in (q.options or q.choices)] for q in questions}
    if rows := [row for row, options in texts.items() if "" in options]:
        yield f"{task}: an option is empty in {_counted(rows)}"
    said = {row: [option for option in options if option] for row, options in texts.items()}
    if rows := [row for row, options in said.items() if len(set(options)) < len(options)]:
        yield f"{task}: options are the same in {_counted(rows)}; an answer in their words is unparsed"


def of_figures(task: str, questions: Sequence[Question], samples: Sequence[Sample]) -> Iterator[str]:
    """Choices that are not blank and have no log-likelihood."""
    rows = [
        sample.id
        for question, sample in zip(questions, samples, strict=True)
        for choice, figure in zip(question.choices, sample.loglikelihoods or (), strict=False)
        if figure is None and choice.strip()
    ]
    if rows := list(dict.fromkeys(rows)):
        problem = "the model gave a log-likelihood that is no finite number"
        yield f"{task}: {problem} in {_counted(rows)}; such a choice is never taken"


def of_window(task: str, samples: Sequence[Sample]) -> Iterator[str]:
    """Answers that end where the model can read no further."""
    if rows := [sample.id for sample in samples if sample.finish_reason == "window"]:
        where = f"{_counted(rows)} (`finish_reason` in samples/{task}.jsonl)"
        yield f"{task}: the answer ends with the model's window in {where}"


def of_failures(task: str, samples: Sequence[Sample]) -> Iterator[str]:
    """Rows that could not be asked, and answers that could not be judged."""
    errors = {sample.id: sample.error for sample in samples if sample.error is not None}
    if errors:
        count = "counts" if len(errors) == 1 else "count"
        first = brief(next(iter(errors.values())))
        yield f"{task}: {_counted([*errors])} {count} as wrong: {first} (`error` in samples/{task}.jsonl)"


def _counted(rows: Sequence[int]) -> str:
    return rows_named(rows) if len(rows) == 1 else f"{len(rows)} rows ({rows_named(rows)})"
