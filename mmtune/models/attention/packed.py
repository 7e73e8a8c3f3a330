"""Attention over packs, in which no document sees another and none is computed against another.

On CUDA, in half precision, FlashAttention takes all documents in one call. Elsewhere every document is a call of its
own: on two cores, 16 documents of 113 tokens took a tenth of the time of one call with a block-diagonal mask, forward
and backward; on an H100 in float32, 33 documents of 128 tokens a fifth. There is no mask over a pack; a document
that is longer than a sliding window has one of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmtune.data.collate import PackLayout
from mmtune.models.attention.kernels import FLASH_TAKES, takes_flash, varlen_attn, without_cudnn

PACKED = "mmtune_packed"


@contextlib.contextmanager
def use_attention(language: Any, name: str) -> Iterator[None]:
    """Let a transformers model compute its attention by another implementation for a while."""
    before = language.config._attn_implementation
    language.config._attn_implementation = name
    try:
        yield
    finally:
        language.config._attn_implementation = before


def packed_hidden(body: Any, embeddings: torch.Tensor, position_ids: torch.Tensor, layout: PackLayout) -> torch.Tensor:
    """Compute the last hidden states [tokens, hidden] of a pack, by a model whose attention is set to `PACKED`.

    Args:
        body: module of the language model that computes the hidden states.
        embeddings: [tokens, hidden].
        position_ids: int64 [tokens], counted from 0 in every document.
        layout: lengths and ends of the documents.
    """
    out = body(
        inputs_embeds=embeddings[None],
        # a mask without elements, so that transformers makes none; documents need none
        attention_mask=embeddings.new_empty(1, 1, 0, 0, dtype=torch.bool),
        position_ids=position_ids[None],
        document_lengths=layout.document_lengths,
        document_ends=layout.document_ends,
        use_cache=False,
    )
    hidden: torch.Tensor = out.last_hidden_state[0]
    return hidden


def _packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: Sequence[int] | None = None,
    document_ends: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Query, key and value are [1, heads, tokens, width]; the result is [1, tokens, heads, width].

    A query sees `sliding_window` tokens back, itself included; where that is None, all.
    """
    if document_lengths is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return out, None
    if sliding_window is not None and sliding_window >= max(document_lengths):
        sliding_window = None
    if document_ends is not None and not dropout and takes_flash(query, key, value):
        return _flash(query, key, value, max(document_lengths), document_ends, scaling, sliding_window), None
    return _apart(query, key, value, list(document_lengths), scaling, dropout, sliding_window), None


def _apart(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scale: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Compute each document's attention in a call of its own, in memory that grows with the documents."""
    if query.is_cuda and query.dtype == torch.float32:  # the kernel that spares memory takes no grouped heads
        key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (key, value))
    documents = []
    with without_cudnn(query.device):
        for q, k, v in zip(*(t.split(lengths, 2) for t in (query, key, value)), strict=True):
            band = _band(q.shape[2], window, q.device) if window is not None and q.shape[2] > window else None
            documents.append(
                F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=band,
                    dropout_p=dropout,
                    is_causal=band is None,
                    scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )
            )
    return torch.cat(documents, 2).transpose(1, 2)


def _band(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which token sees which, each the last `window` tokens with itself: bool [tokens, tokens]."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril().triu(1 - window)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    longest: int,
    ends: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    # rotary embeddings leave query and key in float32 under autocast
    query, key = query.to(value.dtype), key.to(value.dtype)
    # torch 2.11 takes grouped heads without being told
    grouped = {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in FLASH_TAKES else {}
    out: torch.Tensor = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),  # causal
        **grouped,
    )
    return out[None]


AttentionInterface.register(PACKED, _packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
