"""Watch the tests for picks that rounding decides.

Two processors, or one and two threads, add floats in another order. Where the two best of several figures are closer
than that difference, one of them picks another token or option, and a test that compares what is picked fails there
for no fault of the code. Random weights give such near ties by chance, about once in some ten thousand picks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

MARGIN = 1e-4  # in logits of a few units; the rounding of the tests' float32 models is about 1e-6
_VOCABULARY = 16  # figures; an argmax over fewer picks no token


@dataclass
class NearTies:
    """Records picks whose two best figures are closer than `MARGIN`.

    Attributes:
        found: a line for each, with the difference.
    """

    found: list[str] = field(default_factory=list)

    def take(self) -> list[str]:
        """Return what was found since the last call."""
        found, self.found = self.found, []
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every argmax over a vocabulary, and at every choice by likelihood."""
        from mmtune.evaluation.score import scoring

        with pytest.MonkeyPatch.context() as patch:
            for owner in (torch, torch.Tensor):
                patch.setattr(owner, "argmax", self._argmax(owner.argmax))
            patch.setattr(scoring, "likeliest", self._likeliest(scoring.likeliest))
            yield

    def _argmax(self, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(original)
        def argmax(values: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            last = -1 in args or options.get("dim") == -1
            if last and values.is_floating_point() and values.numel() and values.shape[-1] >= _VOCABULARY:
                best = values.detach().float().topk(2, -1).values
                self._note("tokens", best[..., 0] - best[..., 1])
            return original(values, *args, **options)

        return argmax

    def _likeliest(self, original: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(original)
        def likeliest(loglikelihoods: Sequence[float | None], choices: Sequence[str], **options: Any) -> int | None:
            normalised = options["normalised"]
            figures = sorted(
                figure / max(1, len(choice)) if normalised else figure
                for figure, choice in zip(loglikelihoods, choices, strict=True)
                if figure is not None
            )
            if len(figures) > 1:
                self._note("choices", torch.tensor(figures[-1] - figures[-2]))
            return original(loglikelihoods, choices, **options)

        return likeliest

    def _note(self, what: str, gaps: torch.Tensor) -> None:
        self.found += [f"two {what} are {gap:.1e} apart" for gap in gaps.flatten().tolist() if gap < MARGIN]
