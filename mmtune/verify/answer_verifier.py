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
    """What was wanted.

    Attributes:
        answers: all gold answers that count, at least one.
        kind: what counts as an answer.
        options: the options' texts; empty for a free answer.

    Raises:
        UserError: there is no gold answer, one text stands where a tuple of texts is meant, or letters have no options.
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
    """A `Verifier` by a rule: extraction steps find the answer, and `compare` scores it."""

    name: ClassVar[str]

    def __init__(self, steps: Sequence[str] = ()) -> None:
        """A verifier of one task.

        Args:
            steps: names of extraction steps, in order; those that normalize are applied to short gold answers too.
        """
        self.steps = tuple(steps)

    def verify(self, completion: Completion, reference: Reference) -> Verdict:
        """The verdict on the answer that stands in a completion; its thought does not count, and no answer scores 0."""
        answer = parse(completion.text, self.steps, reference.kind, reference.options)
        if answer is None:
            return Verdict(0.0)
        golds = reference.answers
        if reference.kind == "short":
            golds = tuple(normalize_gold(gold, self.steps) for gold in golds)
        return self.compare(answer, golds)

    @abstractmethod
    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:
        """The verdict on an answer that was read: how well it agrees with the gold answers. It never raises."""
