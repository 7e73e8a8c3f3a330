from __future__ import annotations

import pytest
import torch
from torch import nn

from mmtune.models.projector import build_projector
from mmtune.models.spec import ProjectorKind

KINDS: list[ProjectorKind] = ["linear", "mlp2x_gelu"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_the_first_weights(kind: ProjectorKind) -> None:
    first = build_projector(kind, 48, 64, scale=0.02, seed=1)
    torch.manual_seed(99)
    again, other = (build_projector(kind, 48, 64, scale=0.02, seed=s) for s in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.015, 1.0])
def test_photos_begin_at_the_scale_of_the_words(kind: ProjectorKind, scale: float) -> None:
    features = torch.randn(500, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        deviation = float(build_projector(kind, 48, 64, scale=scale, seed=1)(features).std())
    assert deviation == pytest.approx(scale, rel=0.15)


def test_layers_are_llavas() -> None:
    linear, mlp = (build_projector(kind, 48, 64, scale=1.0, seed=1) for kind in KINDS)
    assert {n: tuple(p.shape) for n, p in linear.named_parameters()} == {
        "0.weight": (64, 48),
        "0.bias": (64,),
    }
    assert list(mlp.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(mlp[1], nn.GELU)
    assert mlp[2].weight.shape == (64, 64)
