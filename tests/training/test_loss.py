from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from mmtune.training.objectives.token_loss import supervised_loss


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_chunks_are_the_plain_cross_entropy(tokens: int, chunk: int, share: float, seed: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) > share] = -100
    targets[int(torch.randint(0, tokens, (), generator=generator))] = 3
    layer = nn.Linear(8, 11, bias=bias)
    wanted = [hidden, *layer.parameters()]
    ours = supervised_loss(hidden, targets, layer, chunk=chunk)
    plain = cross_entropy(layer(hidden), targets)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(ours, wanted), torch.autograd.grad(plain, wanted)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_only_learnt_positions_meet_the_vocabulary() -> None:
    layer = nn.Linear(8, 11)
    seen: list[int] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    targets = torch.full((30,), -100)
    targets[4:9] = 2
    supervised_loss(torch.randn(30, 8), targets, layer, chunk=2)
    assert seen == [2, 2, 1]


def test_the_loss_is_float32_in_bfloat16_models() -> None:
    hidden, layer, targets = torch.randn(4, 8).bfloat16(), nn.Linear(8, 11).bfloat16(), torch.tensor([1, 2, -100, 3])
    with torch.no_grad():
        loss = supervised_loss(hidden, targets, layer)
        assert loss.dtype == torch.float32
        # the logits are rounded to bfloat16, their softmax is not
        assert float(loss) == pytest.approx(float(cross_entropy(layer(hidden).float(), targets)), rel=1e-5)
