"""Attention that keeps packed documents apart."""

from __future__ import annotations

import torch


def isolated_mask(document_ids: torch.Tensor) -> torch.Tensor | None:
    """Who may see whom in a pack: each token the tokens before it in its own document, and itself.

    Args:
        document_ids: int64 [tokens], ascending.

    Returns:
        bool [1, 1, tokens, tokens], True where attention is allowed; None for a single document, where plain causal
        attention says the same and has faster kernels.
    """
    if int(document_ids[0]) == int(document_ids[-1]):
        return None
    same = document_ids[:, None] == document_ids[None, :]
    return same.tril()[None, None]
