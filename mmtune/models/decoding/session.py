"""Completions of one conversation, in which what was computed before is not computed again."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from mmtune.models.attention.decoding import Decoding
from mmtune.models.attention.tree import Computed
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.passes import Passes
from mmtune.models.decoding.prefixes import Node, TokenIds, common_prefix
from mmtune.models.decoding.sampler import Sampler
from mmtune.models.decoding.steps import Steps


class Session:
    """Keeps keys and values from one completion to the next, as far as the next one begins with the same tokens.

    Attributes:
        counts: tokens computed, reused and generated so far.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._decoding: Decoding | None = None
        self._known: TokenIds = np.zeros(0, dtype=np.int64)  # whose keys and values `_decoding` holds
        self.counts = Counts()

    def stream(self, draft: Draft, sampler: Sampler) -> Generator[None, None, None]:
        """Write a draft; it may be left before its end.

        Yields:
            After each token.
        """
        with torch.inference_mode():
            decoding, logits = self._begin(draft)
        steps = Steps(self._passes, decoding)
        while True:
            sampler.extend(logits, [draft])
            self.counts.generated += 1
            yield
            if draft.done:
                return
            with torch.inference_mode():
                logits = steps.grow([draft.written[-1]])
            # only now: where it was interrupted, the next one cuts off what some layers have and others have not
            self._known = draft.token_ids

    def _begin(self, draft: Draft) -> tuple[Decoding, torch.Tensor]:
        """Compute what the draft follows; the logits [1, vocabulary] of what comes next."""
        ids = draft.token_ids
        known = min(common_prefix(self._known, ids), len(ids) - 1)
        held: dict[Node, Computed] = {}
        parent = None
        if self._decoding is not None and known:
            parent = Node(0, ids[:known], None)
            held[parent] = self._decoding
        node = Node(known, ids[known:], parent)
        decoding = Decoding([len(ids)], [1], draft.most)
        ((pack, computed),) = self._passes.tree([node], held, len(ids))
        decoding.add(node, computed, 1)
        self._decoding, self._known = decoding, ids
        self.counts.computed += len(ids) - known
        self.counts.reused += known
        return decoding, self._passes.head(pack.hidden[-1:])
