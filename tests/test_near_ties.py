"""The watch over picks that rounding decides sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from near_ties import MARGIN, NearTies

from mmtune.evaluation.score import scoring

PICKS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda logits: logits.argmax(-1),
    lambda logits: logits.argmax(dim=-1),
    lambda logits: torch.argmax(logits, dim=-1),
]


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize(("gap", "found"), [(0.0, 1), (MARGIN / 2, 1), (MARGIN * 2, 0)])
def test_tokens(near_ties: NearTies, gap: float, found: int, pick: Callable[[torch.Tensor], torch.Tensor]) -> None:
    logits = torch.arange(40.0).repeat(3, 1)
    logits[1, 7] = 39.0 + gap
    assert pick(logits)[0] == 39
    assert len(near_ties.take()) == found


@pytest.mark.parametrize(("figures", "found"), [([-1.0, -1.0, -9.0], 1), ([-9.0, -1.0, None], 0), ([-3.0], 0)])
def test_choices(near_ties: NearTies, figures: list[float | None], found: int) -> None:
    scoring.likeliest(figures, ["a", "b", "c"][: len(figures)], normalised=False)
    assert len(near_ties.take()) == found
