"""The hash of weights tells any two apart that differ in a bit, a name, a shape or a place."""

from __future__ import annotations

import pytest
import torch

from mmtune.models import content
from mmtune.models.content import hash_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_bit_counts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_WORDS", 3)  # so that several pieces are hashed
    values = torch.arange(37, dtype=torch.float32).to(dtype)
    known = {hash_weights([("w", values)])}
    for place in range(len(values)):
        changed = values.clone()
        changed[place] += 1
        known.add(hash_weights([("w", changed)]))
    for first in range(len(values) - 1):
        swapped = values.clone()
        swapped[[first, first + 1]] = values[[first + 1, first]]
        known.add(hash_weights([("w", swapped)]))
    known |= {hash_weights([("v", values)]), hash_weights([("w", values[None])]), hash_weights([("w", values[:-1])])}
    assert len(known) == 1 + 37 + 36 + 3


def test_what_is_the_same_has_the_same_hash() -> None:
    values = torch.randn(5, 8)
    pair = [("a", values), ("b", values.T)]
    assert hash_weights(pair) == hash_weights([("b", values.T.contiguous()), ("a", values.clone())])
    assert hash_weights([("a", values[1:])]) == hash_weights([("a", values[1:].clone())])
    assert hash_weights([("a", torch.tensor(1.0))]) != hash_weights([("a", torch.tensor(2.0))])
