"""Greedy answers and log-likelihoods for many sequences, each distinct prefix computed once and nothing padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmtune.models.attention.packed import use_attention
from mmtune.models.attention.tree import TREE, Decoding, TreePack
from mmtune.models.decoding.answers import Answer, Ending
from mmtune.models.decoding.batches import in_batches
from mmtune.models.decoding.prefixes import Keys, Node, common_prefix, in_tree_order, prefix_tree
from mmtune.models.head import LOGIT_ROWS

_PACK_TOKENS = 1024  # computed in one pass; more brings no more speed, only memory


@dataclass(slots=True)
class Counts:
    """What a call computed, in tokens.

    Attributes:
        computed: prompt tokens that went through the model.
        reused: prompt tokens that another prompt begins with too, and that were computed for it.
        generated: tokens of the answers.
    """

    computed: int = 0
    reused: int = 0
    generated: int = 0


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a batch: its sequences, the tokens of the longest, and the distinct tokens of all."""

    count: int = 0
    longest: int = 0
    distinct: int = 0


class PrefixSharing:
    """A language model that answers and scores many token sequences together.

    What is computed for a sequence does not depend on the others, but for the last bits of floating point.

    Attributes:
        counts: tokens computed so far.
    """

    def __init__(
        self,
        language: Any,
        tokenizer: Any,
        embed: Callable[[Keys], torch.Tensor],
        *,
        body: Any,
        head: Callable[[torch.Tensor], torch.Tensor],
        batch_tokens: int,
        share: bool = True,
    ) -> None:
        """
        Args:
            language: a causal language model of transformers.
            tokenizer: its tokenizer.
            embed: gives the embeddings [tokens, hidden] of a sequence's keys.
            body: the module in it that gives hidden states.
            head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
            batch_tokens: tokens whose keys and values may be in memory at once; halved when memory runs out.
            share: False computes every sequence by itself.
        """
        self._language, self._tokenizer, self._embed = language, tokenizer, embed
        self._body, self._head = body, head
        self._budget, self._share = batch_tokens, share
        self.counts = Counts()

    def generate(self, prompts: Sequence[Keys], ending: Ending) -> list[str]:
        """The greedy answer to each prompt.

        Raises:
            UserError: memory is too small for a single one.
        """
        answers = [""] * len(prompts)

        def answer(batch: list[int]) -> None:
            for place, text in enumerate(self._answer([prompts[i] for i in batch], ending)):
                answers[batch[place]] = text

        self._in_batches(prompts, lambda b: b.count * (b.longest + ending.max_tokens), answer)
        return answers

    def loglikelihoods(self, sequences: Sequence[Keys], scored: Sequence[int]) -> list[float]:
        """The summed natural-log probability of each sequence's last `scored` tokens, given those before them.

        Raises:
            UserError: memory is too small for a single one.
        """
        sums = [0.0] * len(sequences)
        inputs = [keys[:-1] for keys in sequences]  # what follows the last token is not asked

        def score(batch: list[int]) -> None:
            targets = [sequences[i][len(sequences[i]) - scored[i] :].tolist() for i in batch]
            for place, total in enumerate(self._score([inputs[i] for i in batch], targets)):
                sums[batch[place]] = total

        self._in_batches(inputs, lambda b: b.distinct, score)
        return sums

    def _in_batches(
        self, sequences: Sequence[Keys], held: Callable[[_Size], int], run: Callable[[list[int]], None]
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
                keys = sequences[number]
                shared = common_prefix(sequences[batch[-1]], keys) if batch and self._share else 0
                size = _Size(size.count + 1, max(size.longest, len(keys)), size.distinct + len(keys) - shared)
                if batch and held(size) > budget:
                    break
                batch.append(number)
            return batch

        lengths = [len(keys) for keys in sequences]
        self._budget = in_batches(in_tree_order(sequences), lengths, self._budget, first, run)

    def _answer(self, prompts: Sequence[Keys], ending: Ending) -> list[str]:
        decoding = Decoding(len(prompts), max(map(len, prompts)) + ending.max_tokens)
        answers: dict[int, Answer] = {}
        growing: list[tuple[Answer, int]] = []  # each with its newest token
        for pack, packs in self._compute(prompts):
            nodes = [node for node in pack.nodes if node.ends]
            if not nodes:
                continue
            last = torch.tensor([pack.rows(node).stop - 1 for node in nodes], device=pack.hidden.device)
            for node, token in zip(nodes, self._next_tokens(pack.hidden[last]), strict=True):
                answer = Answer(ending, self._tokenizer)
                answers.update(dict.fromkeys(node.ends, answer))
                if not answer.add(token):
                    decoding.add(node, packs)
                    growing.append((answer, token))
        while growing:
            decoding.grow()
            newest = np.array([token for _, token in growing])
            hidden = self._forward(self._embed(newest), decoding.lengths - 1, decoding)
            for place, token in reversed(list(enumerate(self._next_tokens(hidden)))):
                answer, _ = growing[place]
                growing[place] = (answer, token)
                if answer.add(token):
                    decoding.remove(place)
                    growing[place] = growing[-1]
                    growing.pop()
        # counted once it is done: a batch that ran out of memory is computed again
        self.counts.generated += sum(answer.tokens for answer in set(answers.values()))
        return [answers[i].text for i in range(len(prompts))]

    def _score(self, inputs: Sequence[Keys], targets: Sequence[Sequence[int]]) -> list[float]:
        sums = [0.0] * len(inputs)
        for pack, packs in self._compute(inputs):
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
                logits = self._head(torch.stack(hidden[start : start + LOGIT_ROWS])).float().log_softmax(-1)
                here = [(i, row - start, token) for i, row, token in asked if start <= row < start + LOGIT_ROWS]
                found = logits[[row for _, row, _ in here], [token for _, _, token in here]]
                for (i, _, _), value in zip(here, found.tolist(), strict=True):
                    sums[i] += value
        return sums

    def _compute(self, sequences: Sequence[Keys]) -> Iterator[tuple[TreePack, dict[Node, TreePack]]]:
        """Every node of the sequences' tree, in packs; with each the packs that hold it and all that is above it."""
        nodes = prefix_tree(sequences, share=self._share)
        computed = sum(len(node.keys) for node in nodes)
        groups = list(_groups(nodes, min(_PACK_TOKENS, self._budget)))
        last_use = {above: number for number, group in enumerate(groups) for node in group for above in node.path()}
        packs: dict[Node, TreePack] = {}
        for number, group in enumerate(groups):
            embeddings = self._embed(np.concatenate([node.keys for node in group]))
            pack = TreePack(group, packs, embeddings)
            pack.finish(self._forward(embeddings, pack.positions(), pack))
            packs.update(dict.fromkeys(group, pack))
            yield pack, packs
            packs = {node: held for node, held in packs.items() if last_use[node] > number}
        # counted once it is done: a batch that ran out of memory is computed again
        self.counts.computed += computed
        self.counts.reused += sum(map(len, sequences)) - computed

    def _forward(self, embeddings: torch.Tensor, positions: torch.Tensor, tree: TreePack | Decoding) -> torch.Tensor:
        with use_attention(self._language, TREE):
            out = self._body(
                inputs_embeds=embeddings[None],
                position_ids=positions.to(embeddings.device)[None],
                use_cache=False,
                tree=tree,
            )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def _next_tokens(self, hidden: torch.Tensor) -> list[int]:
        tokens: list[int] = self._head(hidden).argmax(-1).tolist()
        return tokens


def _groups(nodes: Sequence[Node], tokens: int) -> Iterator[list[Node]]:
    """Cut a list of nodes into runs of at most so many tokens; a longer node is a run of its own."""
    group: list[Node] = []
    held = 0
    for node in nodes:
        if group and held + len(node.keys) > tokens:
            yield group
            group, held = [], 0
        group.append(node)
        held += len(node.keys)
    if group:
        yield group
