"""Cross entropy and log-probabilities at the supervised positions only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from mmtune.data.encoding import IGNORED

OutputLayer = Callable[[torch.Tensor], torch.Tensor]  # hidden states [rows, hidden] to logits [rows, vocabulary]
CHUNK = 1024  # positions whose logits exist at once: 1024 x 32,000 floats are 131 MB


def supervised_loss(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    output_layer: OutputLayer,
    *,
    positions: torch.Tensor | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Compute the mean cross entropy over the supervised tokens.

    The vocabulary projection, the largest matrix product of a small model, is computed only at those positions, in
    chunks. The logits of several chunks are computed again in the backward pass, to save memory.

    Args:
        hidden: [tokens, hidden].
        targets: int64 [tokens], IGNORED at positions that are not supervised.
        output_layer: hidden states to logits.
        positions: int64 [supervised], the supervised positions (`PackedBatch.layout.supervised`); None looks for them,
            for which the host waits where the targets are on a GPU.
        chunk: positions computed at once.

    Returns:
        A scalar in float32; 0 if there are no supervised tokens.
    """
    positions = _supervised(targets) if positions is None else positions
    states, wanted = hidden.index_select(0, positions), targets.index_select(0, positions)
    return chunked_loss(states, wanted, output_layer, chunk=chunk)


def token_log_probs(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    output_layer: OutputLayer,
    *,
    positions: torch.Tensor | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Compute the log-probability of each supervised token, for objectives with their own weights.

    Args:
        hidden: [tokens, hidden].
        targets: int64 [tokens], IGNORED at positions that are not supervised.
        output_layer: hidden states to logits.
        positions: see `supervised_loss`.
        chunk: positions computed at once; the logits of several chunks are computed again in the backward pass.

    Returns:
        float32 [tokens], with a gradient; 0 at positions that are not supervised.
    """
    positions = _supervised(targets) if positions is None else positions

    def log_probs(some_states: torch.Tensor, some_wanted: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(output_layer(some_states).float(), some_wanted, reduction="none")

    states, wanted = hidden.index_select(0, positions), targets.index_select(0, positions)
    found = torch.cat(_in_chunks(log_probs, states, wanted, chunk))
    return torch.zeros(len(targets), device=found.device).index_copy(0, positions, found)


def _supervised(targets: torch.Tensor) -> torch.Tensor:
    """Return the supervised positions: int64 [supervised]."""
    return (targets != IGNORED).nonzero()[:, 0]


def chunked_loss(
    states: torch.Tensor, wanted: torch.Tensor, output_layer: OutputLayer, *, chunk: int = CHUNK
) -> torch.Tensor:
    """Compute the mean cross entropy where all positions are supervised.

    Args:
        states: hidden states, [positions, hidden].
        wanted: target tokens, [positions].
        output_layer: hidden states to logits.
        chunk: positions computed at once.
    """

    def summed(some_states: torch.Tensor, some_wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(output_layer(some_states).float(), some_wanted, reduction="sum")

    parts = _in_chunks(summed, states, wanted, chunk)
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
    return total / max(1, len(wanted))


def _in_chunks(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    wanted: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    """Apply `compute` to each chunk; with several chunks, no logits are kept for the backward pass."""
    parts = list(zip(states.split(chunk), wanted.split(chunk), strict=True))
    if len(parts) == 1:
        return [compute(*parts[0])]
    return [checkpoint(compute, *part, use_reentrant=False) for part in parts]
