"""Metrics of Hugging Face's `evaluate`, by hub id or local path. Their code runs only where the user allows it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from mmtune.common.errors import UserError
from mmtune.common.hub import go_offline_if_unreachable
from mmtune.common.schema import COMPUTED, NullIsAbsent
from mmtune.evaluation.score.metrics import Floats, Outcomes
from mmtune.verify.option_names import LETTERS

Form = Literal["text", "number"]

_NUMBERS: dict[str | None, int] = {"no": 0, "yes": 1, **{letter: place for place, letter in enumerate(LETTERS)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalMetric(NullIsAbsent):
    """A metric of `evaluate` as a task file names it.

    Attributes:
        path: a hub id, or the path of a Python file.
        revision: the hub's commit, branch or tag; None for the newest.
        result: which of the values that it computes; by default the one that is called as it is.
        answers: how it gets the answers: as text, or as numbers (A is 0, no is 0 and yes is 1, no answer is -1).
        arguments: passed on to it.
        code: SHA-256 of a local file's bytes, None for the hub.
    """

    path: str
    revision: str | None = None
    result: str = ""
    answers: Form = "text"
    arguments: dict[str, Any] = field(default_factory=dict)
    code: Annotated[str | None, COMPUTED] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "result", self.result or Path(self.path).stem)

    @property
    def name(self) -> str:
        """What it is called in the results; never the name of one of ours."""
        return f"evaluate:{self.result}"

    def __call__(self, outcomes: Outcomes) -> Floats:
        """The value over n samples.

        Raises:
            UserError: the module fails, or does not compute `result`.
        """
        module = load_metric(self.path, self.revision, self.code)
        try:
            values = module.compute(
                predictions=self._given(outcomes.prediction),
                references=self._given(outcomes.target),
                **self.arguments,
            )
            return np.asarray(values[self.result], dtype=np.float64)
        except Exception as error:  # the module may raise anything
            raise UserError(f"metric {self.path}: does not compute {self.result!r}: {_reason(error)}") from error

    def _given(self, answers: Iterable[str | None]) -> list[str] | list[int]:
        if self.answers == "number":
            return [_NUMBERS.get(answer, -1) for answer in answers]
        return [answer or "" for answer in answers]


@functools.cache
def load_metric(path: str, revision: str | None, code: str | None) -> Any:
    """Load the module of a metric.

    Raises:
        UserError: it cannot be loaded.
    """
    import mmtune.common.torchvision_ops  # noqa: F401  # before evaluate

    offline = code is None and go_offline_if_unreachable()
    import evaluate

    try:
        return evaluate.load(path, module_type="metric", revision=revision, keep_in_memory=True)
    except Exception as error:  # the module's own code runs here
        state = " (offline)" if offline else ""
        raise UserError(f"metric {path}: cannot be loaded{state}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
