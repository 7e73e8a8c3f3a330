"""Completions and log-likelihoods of many sequences, each distinct prefix computed once and nothing padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmtune.common.devices import on_device
from mmtune.models.attention.decoding import Decoding
from mmtune.models.attention.tree import TreePack
from mmtune.models.decoding.batches import in_batches
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.passes import Passes
from mmtune.models.decoding.prefixes import Node, TokenIds, common_prefix, in_tree_order, prefix_tree
from mmtune.models.decoding.sampler import Sampler
from mmtune.models.decoding.steps import Steps
from mmtune.models.head import LOGIT_ROWS

_PACK_TOKENS = 1024  # computed in one pass; more brings no more speed, only memory
_EXPECTED = 256  # tokens of a completion that a batch is made for; one that gets longer may have to wait for others


@dataclass(slots=True)
class Counts:
    """What a call computed, in tokens.

    Attributes:
        computed: prompt tokens that went through the model.
        reused: prompt tokens that another prompt begins with too, and that were computed for it.
        generated: tokens of the completions.
    """

    computed: int = 0
    reused: int = 0
    generated: int = 0


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a batch: its sequences, those that differ, the tokens of the longest, and the distinct tokens of all."""

    count: int = 0
    different: int = 0
    longest: int = 0
    distinct: int = 0


class PrefixSharing:
    """A language model that completes and scores many token sequences together.

    What is computed for a sequence does not depend on the others, but for the last bits of floating point.

    Attributes:
        counts: tokens computed so far.
    """

    def __init__(self, passes: Passes, *, batch_tokens: int, share: bool = True) -> None:
        """
        Args:
            passes: the model.
            batch_tokens: tokens whose keys and values may be in memory at once; halved when memory runs out.
            share: False computes every sequence by itself.
        """
        self._passes, self._budget, self._share = passes, batch_tokens, share
        self.counts = Counts()

    def complete(self, drafts: Sequence[Draft], sampler: Sampler) -> None:
        """Write drafts to their ends.

        Where their keys and values outgrow the batch, some drafts wait, and what they have is computed again.

        Raises:
            UserError: memory is too small for a single one.
        """
        waiting = list(drafts)
        while waiting:
            self._write_round(waiting, sampler)
            waiting = [draft for draft in waiting if not draft.done]
        self.counts.generated += sum(len(draft.written) for draft in drafts)

    def _write_round(self, drafts: Sequence[Draft], sampler: Sampler) -> None:
        """Write drafts batch by batch; some of a batch that outgrows its memory are not written to their ends."""
        expected = min(_EXPECTED, max(draft.most for draft in drafts))
        self._in_batches(
            [draft.token_ids for draft in drafts],
            lambda b: b.different * b.longest + b.count * expected,
            lambda batch: self._write([drafts[i] for i in batch], sampler),
        )

    def loglikelihoods(self, sequences: Sequence[TokenIds], scored: Sequence[int]) -> list[float]:
        """The summed natural-log probability of each sequence's last `scored` tokens, given those before them.

        Raises:
            UserError: memory is too small for a single one.
        """
        sums = [0.0] * len(sequences)
        inputs = [ids[:-1] for ids in sequences]  # what follows the last token is not asked

        def score(batch: list[int]) -> None:
            targets = [sequences[i][len(sequences[i]) - scored[i] :].tolist() for i in batch]
            for place, total in enumerate(self._score([inputs[i] for i in batch], targets)):
                sums[batch[place]] = total

        self._in_batches(inputs, lambda b: b.distinct, score)
        return sums

    def _in_batches(
        self, sequences: Sequence[TokenIds], held: Callable[[_Size], int], run: Callable[[list[int]], None]
    ) -> None:
        """Run batches of sequences that begin alike.

        Args:
            sequences: all of them.
            held: how many tokens a batch of this size keeps in memory.
            run: computes a batch.
        """

        def first(waiting: Sequence[int], budget: int) -> list[int]:
            size, batch = _Size(), list[int]()
            for number in waiting:
                ids = sequences[number]
                shared = common_prefix(sequences[batch[-1]], ids) if batch and self._share else 0
                another = not batch or shared < max(len(ids), len(sequences[batch[-1]]))
                size = _Size(
                    size.count + 1,
                    size.different + another,
                    max(size.longest, len(ids)),
                    size.distinct + len(ids) - shared,
                )
                if batch and held(size) > budget:
                    break
                batch.append(number)
            return batch

        lengths = [len(ids) for ids in sequences]
        self._budget = in_batches(in_tree_order(sequences), lengths, self._budget, first, run)

    def _write(self, drafts: Sequence[Draft], sampler: Sampler) -> None:
        """Write drafts until they end or there is no more room for all; a single one is always written to its end."""
        sequences = [draft.token_ids for draft in drafts]
        decoding, growing = self._begun(drafts, sequences, sampler)
        steps = Steps(self._passes, decoding) if growing else None
        while steps is not None and growing:
            while len(growing) > 1 and decoding.tokens_after_growth > self._budget:
                growing.pop()
                decoding.remove(len(growing))
            sampler.extend(steps.grow([draft.written[-1] for draft in growing]), growing)
            for place in reversed(range(len(growing))):
                if growing[place].done:
                    decoding.remove(place)
                    growing[place] = growing[-1]
                    growing.pop()

    def _begun(
        self, drafts: Sequence[Draft], sequences: Sequence[TokenIds], sampler: Sampler
    ) -> tuple[Decoding, list[Draft]]:
        """Compute what the drafts follow, and give each its next token. Returns those that are not over, in order."""
        nodes = prefix_tree(sequences, share=self._share)
        ends = [node for node in nodes if node.ends]
        most = max(draft.most - len(draft.written) for draft in drafts)
        decoding = Decoding([node.end for node in ends], [len(node.ends) for node in ends], most)
        growing: list[Draft] = []
        for pack, computed in self._compute(sequences, nodes):
            ending = [node for node in pack.nodes if node.ends]
            if not ending:
                continue
            last = [pack.rows(node).stop - 1 for node in ending]
            logits = self._passes.head(pack.hidden[on_device(last, pack.hidden.device)])
            rows = [row for row, node in enumerate(ending) for _ in node.ends]
            here = [drafts[i] for node in ending for i in node.ends]
            sampler.extend(logits[on_device(rows, logits.device)], here)
            for node in ending:
                if going_on := [drafts[i] for i in node.ends if not drafts[i].done]:
                    decoding.add(node, computed, len(going_on))
                    growing += going_on
        return decoding, growing

    def _score(self, inputs: Sequence[TokenIds], targets: Sequence[Sequence[int]]) -> list[float]:
        sums = [0.0] * len(inputs)
        for pack, packs in self._compute(inputs, prefix_tree(inputs, share=self._share)):
            # the places whose next token is asked: one row of logits each, whoever asks
            rows: dict[tuple[Node, int], int] = {}
            asked: list[tuple[int, int, int]] = []  # sequence, row, token
            for node in pack.nodes:
                for i in node.ends:
                    for place, token in enumerate(targets[i], start=node.end - len(targets[i])):
                        holder = next(above for above in reversed(node.path()) if above.start <= place)
                        row = rows.setdefault((holder, place - holder.start), len(rows))
                        asked.append((i, row, token))
            hidden = [packs[node].hidden[packs[node].rows(node)][place] for node, place in rows]
            for start in range(0, len(hidden), LOGIT_ROWS):
                logits = self._passes.head(torch.stack(hidden[start : start + LOGIT_ROWS])).float().log_softmax(-1)
                here = [(i, row - start, token) for i, row, token in asked if start <= row < start + LOGIT_ROWS]
                found = logits[tuple(on_device(np.array([one[1:] for one in here]), logits.device).unbind(1))]
                for (i, _, _), value in zip(here, found.tolist(), strict=True):
                    sums[i] += value
        return sums

    def _compute(self, sequences: Sequence[TokenIds], nodes: Sequence[Node]) -> Iterator[tuple[TreePack, Any]]:
        """Compute the sequences' tree; see `Passes.tree`."""
        computed = sum(len(node.token_ids) for node in nodes)
        yield from self._passes.tree(nodes, {}, min(_PACK_TOKENS, self._budget))
        # counted once it is done: a batch that ran out of memory is computed again
        self.counts.computed += computed
        self.counts.reused += sum(map(len, sequences)) - computed
