"""FlashAttention over several sequences by its definition, with the refusals of the real kernel."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from device.card.waits import uncounted


@dataclass(frozen=True)
class FlashCall:
    """A forward call of the kernel.

    Attributes:
        dtype: of query, key and value.
        lengths: tokens of each sequence.
        window: tokens seen to the left and to the right; -1 sees all.
    """

    dtype: torch.dtype
    lengths: tuple[int, ...]
    window: tuple[int, int]


CALLS: list[FlashCall] = []
_libraries: list[torch.library.Library] = []


def register_flash() -> None:
    """Register the forward and the backward operator of the kernel for the card."""
    library = torch.library.Library("aten", "IMPL", "CUDA")
    library.impl("_flash_attention_forward", _forward)
    library.impl("_flash_attention_backward", _backward)
    _libraries.append(library)


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    _check(query, key, value, cum_seq_q, cum_seq_k)
    window = _window(window_size_left, window_size_right, is_causal)
    documents = _documents(cum_seq_q)
    lengths = tuple(end - start for start, end in documents)
    if max(lengths) > max_q:
        raise RuntimeError("max_q is below the longest sequence: it would be read short")
    CALLS.append(FlashCall(query.dtype, lengths, window))
    q, k, v = map(_host, (query, key, value))
    parts, sums = [], []
    with torch.no_grad():
        for start, end in documents:
            scores = _scores(q[start:end], k[start:end], scale, window)
            values = _each_head(v[start:end], q.shape[1])
            parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
            sums.append(scores.logsumexp(-1))
    out, none = torch.cat(parts).to(query.dtype), torch.zeros((), dtype=torch.uint64)
    state, mask = torch.zeros(2, dtype=torch.uint64), torch.empty(0, dtype=query.dtype)
    return tuple(map(_card, (out, torch.cat(sums, 1), state, none, mask)))


def _backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: torch.Tensor,
    unused: torch.Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[torch.Tensor, ...]:
    if grad_out.dtype != query.dtype:
        raise RuntimeError("query and dout must have the same dtype")
    g, q, k, v = map(_host, (grad_out, query, key, value))
    window, factor = _window(window_size_left, window_size_right, is_causal), scale or q.shape[-1] ** -0.5
    gradients = []
    for start, end in _documents(cum_seq_q):
        queries, output = q[start:end].float(), g[start:end].float()
        keys, values = (_each_head(t[start:end], q.shape[1]) for t in (k, v))
        shares = _scores(q[start:end], k[start:end], scale, window).softmax(-1)
        of_shares = torch.einsum("qhd,khd->hqk", output, values)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * factor
        of_keys = torch.einsum("hqk,qhd->khd", of_scores, queries)
        of_values = torch.einsum("hqk,qhd->khd", shares, output)
        shared = [t.unflatten(1, (k.shape[1], -1)).sum(2) for t in (of_keys, of_values)]
        gradients.append((torch.einsum("hqk,khd->qhd", of_scores, keys), *shared))
    return tuple(_card(torch.cat(parts).to(query.dtype)) for parts in zip(*gradients, strict=True))


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *ends: torch.Tensor) -> None:
    """Raise the errors of the real kernel."""
    for tensor in (query, key, value, *ends):
        if not tensor.is_cuda:
            raise RuntimeError("Tensor must be on CUDA")
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if key.dtype != query.dtype or value.dtype != query.dtype:
        raise RuntimeError("query, key and value must have the same dtype")
    if any(end.dtype != torch.int32 or not end.is_contiguous() for end in ends):
        raise RuntimeError("cu_seqlens must be contiguous and have dtype int32")
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value)):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if query.shape[-1] > 256 or query.shape[-1] % 8 or query.shape[-1] != value.shape[-1]:
        raise RuntimeError("head dimension must be a multiple of 8, at most 256, and that of the values")


def _documents(cumulative: torch.Tensor) -> list[tuple[int, int]]:
    ends = _host(cumulative).tolist()
    return list(itertools.pairwise(ends))


def _window(left: int | None, right: int | None, causal: bool) -> tuple[int, int]:
    return -1 if left is None else left, 0 if causal else -1 if right is None else right


def _scores(q: torch.Tensor, k: torch.Tensor, scale: float | None, window: tuple[int, int]) -> torch.Tensor:
    """Return the scores [heads, queries, keys], -inf where a key is not seen."""
    keys = _each_head(k, q.shape[1])
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * (scale or q.shape[-1] ** -0.5)
    back = torch.arange(len(q))[:, None] - torch.arange(len(k))[None]
    left, right = window
    seen = torch.ones_like(back, dtype=torch.bool)
    if right >= 0:
        seen &= back >= -right
    if left >= 0:
        seen &= back <= left
    return scores.masked_fill(~seen, float("-inf"))


def _each_head(shared: torch.Tensor, heads: int) -> torch.Tensor:
    return shared.float().repeat_interleave(heads // shared.shape[1], 1)


def _host(tensor: torch.Tensor) -> torch.Tensor:
    with uncounted():
        return tensor.detach().to("cpu")


def _card(tensor: torch.Tensor) -> torch.Tensor:
    with uncounted():
        return tensor.to("cuda:0")
