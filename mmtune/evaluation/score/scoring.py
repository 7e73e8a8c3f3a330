"""From answers to samples, and from samples to the scores of a task."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtune.common.errors import UserError
from mmtune.data.images import EncodedImage
from mmtune.evaluation.run.requests import Answer
from mmtune.evaluation.run.results import Sample, TaskResult
from mmtune.evaluation.score.metrics import Outcomes, standard_error, summarise
from mmtune.evaluation.tasks.render import Question
from mmtune.evaluation.tasks.task import Task
from mmtune.interfaces import Completion, Verdict


def score_answer(task: Task, question: Question, answer: Answer) -> Sample:
    """What became of a question.

    Args:
        task: the way of answering and the verifier.
        question: what was asked.
        answer: what was said.
    """
    completion = Completion(answer.response, answer.thought)
    response = completion.response
    if answer.loglikelihoods is not None:
        best = likeliest(answer.loglikelihoods, question.choices, normalised=task.answering == "likelihood_norm")
        response = response if best is None else question.choices[best]
        completion = Completion("" if best is None else _label(question, best))
    if answer.error is not None:
        verdict = Verdict(0.0, error=answer.error)
    else:
        verdict = task.make_verifier().verify(completion, question.reference)
    return Sample(
        id=question.row,
        prompt=question.prompt,
        response=response,
        prediction=verdict.answer,
        target=question.target,
        score=verdict.score,
        image=_digest(question.images),
        group=question.group,
        error=verdict.error,
        loglikelihoods=answer.loglikelihoods,
        finish_reason=answer.finish_reason,
        details=dict(verdict.details) or None,
    )


def likeliest(loglikelihoods: Sequence[float | None], choices: Sequence[str], *, normalised: bool) -> int | None:
    """Which choice a model finds likeliest, by lm-evaluation-harness' conventions; of equals the first.

    Args:
        loglikelihoods: summed natural log-probability of each choice; one that is None is never the likeliest.
        choices: their texts.
        normalised: divide each sum by its choice's length in characters (`acc_norm`) instead of comparing the sums as
            they are (`acc`).

    Returns:
        Its place, or None if no choice has a figure.
    """
    figures = {
        place: figure / max(1, len(choice)) if normalised else figure
        for place, (figure, choice) in enumerate(zip(loglikelihoods, choices, strict=True))
        if figure is not None
    }
    return max(figures, key=figures.__getitem__) if figures else None


def _label(question: Question, place: int) -> str:
    """The answer that a choice stands for; no text where another choice has the same."""
    return question.labels[place] if question.choices.count(question.choices[place]) == 1 else ""


def score_task(
    task: Task,
    questions: Sequence[Question],
    samples: Sequence[Sample],
    *,
    fingerprint: str,
    protocol: str,
    seed: int,
    cost: dict[str, float],
    key: str,
    shortened: int = 0,
) -> TaskResult:
    """The scores of a task.

    Args:
        task: its metrics; the first is the score.
        questions: all of them.
        samples: one for each question.
        fingerprint: of the rows.
        protocol: blind or mlan.
        seed: of the bootstrap behind the standard error.
        cost: what the answers took.
        key: see `TaskResult`.
        shortened: see `TaskResult`.

    Raises:
        UserError: the first metric gives no number on these answers.
    """
    outcomes = Outcomes.of(
        [sample.score for sample in samples],
        [sample.prediction for sample in samples],
        [sample.target for sample in samples],
    )
    summary = summarise(task.metrics, outcomes, [sample.group for sample in samples])
    if task.answering != "generate":
        summary["accuracy_sum"] = _accuracy(questions, samples, normalised=False)
        summary["accuracy_norm"] = _accuracy(questions, samples, normalised=True)
    main, spec = task.metrics[0], task.dataset
    value, stderr = summary[main.name], standard_error(main, outcomes, seed)
    if not (math.isfinite(value) and math.isfinite(stderr)):
        problem = f"{main.name} gives no number on the answers of {task.name}, so it cannot be the score"
        raise UserError(f"{task.where}: metrics: {problem}; name another one first")
    return TaskResult(
        modality=task.modality,
        version=task.version,
        n=len(samples),
        metric=main.name,
        score=value,
        stderr=stderr,
        unparsed=sum(sample.prediction is None for sample in samples) / len(samples),
        failed=sum(sample.error is not None for sample in samples),
        shortened=shortened,
        metrics=_numbers(summary),
        dataset={"path": spec.path, "config": spec.config, "split": spec.split, "fingerprint": fingerprint},
        protocol=protocol,
        answering=task.answering,
        thinking_budget=task.thinking_budget,
        seconds=cost["seconds"],
        cost=cost,
        key=key,
    )


def _accuracy(questions: Sequence[Question], samples: Sequence[Sample], *, normalised: bool) -> float:
    def right(question: Question, sample: Sample) -> bool:
        if sample.loglikelihoods is None:
            return False
        best = likeliest(sample.loglikelihoods, question.choices, normalised=normalised)
        return best is not None and _label(question, best) == question.target

    return float(np.mean([right(*pair) for pair in zip(questions, samples, strict=True)]))


def _numbers(value: Any) -> Any:
    """Figures, also by group, with None for what is no number: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    return value if math.isfinite(value) else None


def _digest(images: Sequence[EncodedImage]) -> str | None:
    if len(images) > 1:
        return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()
    return images[0].sha256 if images else None
