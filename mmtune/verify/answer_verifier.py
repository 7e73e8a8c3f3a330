"""Verifiers that read an answer in a completion and compare it with gold answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.interfaces import Completion, Verdict
from mmtune.verify.extraction import KINDS, Kind, parse
from mmtune.verify.normalize import normalize_gold


@dataclass(frozen=True, slots=True)
class Reference:
    """Gold answers of a question and the expected kind of answer.

    Attributes:
        answers: all gold answers that count, at least one.
        kind: the kind of answer: a letter of the options, yes or no, or any short text.
        options: the options' texts; empty for a free answer.

    Raises:
        UserError: there is no gold answer, a text is given in place of a tuple of texts, the kind is unknown, or the
            kind is a letter and there are no options.
    """

    answers: tuple[str, ...]
    kind: Kind = "short"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, texts in (("answers", self.answers), ("options", self.options)):
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{name} {brief(repr(texts))}: give texts in a tuple")
        if not self.answers:
            raise UserError("answers (): give at least one gold answer")
        if self.kind not in KINDS:
            raise UserError(f"kind {brief(repr(self.kind))}: {did_you_mean(str(self.kind), KINDS)}")
        if self.kind == "letter" and not self.options:
            raise UserError("options (): a letter names one of them; give their texts")


class AnswerVerifier(ABC):
    """Rule-based `Verifier`: extraction steps find the answer, and `compare` scores it."""

    name: ClassVar[str]

    def __init__(self, steps: Sequence[str] = ()) -> None:
        """Create a verifier for one task.

        Args:
            steps: names of extraction steps, in order; those that normalize are applied to short gold answers too.
        """
        self.steps = tuple(steps)

    def verify(self, completion: Completion, reference: Reference) -> Verdict:
        """Score the answer in a completion; its thought is ignored, and a completion without an answer scores 0."""
        answer = parse(completion.text, self.steps, reference.kind, reference.options)
        if answer is None:
            return Verdict(0.0)
        golds = reference.answers
        if reference.kind == "short":
            golds = tuple(normalize_gold(gold, self.steps) for gold in golds)
        return self.compare(answer, golds)

    @abstractmethod
    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:
        """Score an extracted answer by its agreement with the gold answers; never raises an error."""
