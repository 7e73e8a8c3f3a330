"""Verifier that compares the answer with each gold answer."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.interfaces import Verdict
from mmtune.verify.answer_verifier import AnswerVerifier
from mmtune.verify.comparison import same_answer


class ExactVerifier(AnswerVerifier):
    """Score 1 if the answer equals a gold answer by `same_answer`, else 0."""

    name = "exact"

    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:  # noqa: D102
        return Verdict(float(any(same_answer(answer, gold) for gold in golds)), answer)
