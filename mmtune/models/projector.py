"""Projector from vision features to word embeddings."""

from __future__ import annotations

import torch
from torch import nn

from mmtune.models.spec import ProjectorKind


def build_projector(kind: ProjectorKind, width: int, hidden: int, *, scale: float, seed: int) -> nn.Sequential:
    """Build a projector from features of `width` to embeddings of `hidden`.

    `linear` is LLaVA's, `mlp2x_gelu` LLaVA 1.5's (arXiv 2310.03744, section 3.2). Layer names are LLaVA's
    `mm_projector` ones (0, 2). The initial weights depend on the seed alone. For features of standard deviation 1, the
    initial output has a standard deviation of about `scale`, that of the word embeddings, so that images do not
    dominate the words.
    """
    layers = [nn.Linear(width, hidden)]
    if kind == "mlp2x_gelu":
        layers.append(nn.Linear(hidden, hidden))
    if not layers[0].weight.is_meta:
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            sample = torch.randn(256, width, generator=generator)
            projected = _stack(layers)(sample)
            layers[-1].weight.mul_(scale / projected.std())
    return _stack(layers)


def _stack(layers: list[nn.Linear]) -> nn.Sequential:
    return nn.Sequential(layers[0]) if len(layers) == 1 else nn.Sequential(layers[0], nn.GELU(), layers[1])


@torch.no_grad()
def spread_of_words(embedding: nn.Module) -> float:
    """Compute the standard deviation of the word embeddings as returned: some layers (Gemma 3's) scale their rows."""
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    return float(embedding(torch.arange(len(weight), device=weight.device)).float().std())
