"""Passes through a language model: nodes of a prefix tree, and steps of decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmtune.common.devices import on_device
from mmtune.models.attention.kernels import without_cudnn
from mmtune.models.attention.packed import use_attention
from mmtune.models.attention.tree import TREE, Attending, Computed, TreePack
from mmtune.models.decoding.prefixes import Node, TokenIds


@dataclass
class Graphs:
    """Use of CUDA graphs for the steps of decoding; see `mmtune.models.decoding.steps`.

    Attributes:
        allowed: whether steps may be captured; false once a part of the model could not be.
    """

    allowed: bool = True


@dataclass(frozen=True)
class Passes:
    """A language model as the engine computes it.

    Attributes:
        language: a causal language model of transformers.
        body: the module in it that gives hidden states.
        head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
        embed: gives the embeddings [tokens, hidden] of token ids.
        graphs: whether steps are captured on a GPU.
    """

    language: Any
    body: Any
    head: Callable[[torch.Tensor], torch.Tensor]
    embed: Callable[[TokenIds], torch.Tensor]
    graphs: Graphs = field(default_factory=lambda: Graphs())

    def hidden(self, embeddings: torch.Tensor, positions: torch.Tensor, attending: Attending) -> torch.Tensor:
        """The last hidden states [tokens, hidden] of embeddings [tokens, hidden]."""
        with use_attention(self.language, TREE), without_cudnn(embeddings.device):
            out = self.body(
                inputs_embeds=embeddings[None],
                position_ids=on_device(positions, embeddings.device)[None],
                use_cache=False,
                tree=attending,
            )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def tree(
        self, nodes: Sequence[Node], computed: dict[Node, Computed], most: int
    ) -> Iterator[tuple[TreePack, dict[Node, Computed]]]:
        """Compute the nodes of a tree, in packs of so many tokens.

        Args:
            nodes: each after its parent.
            computed: those that are there already.
            most: tokens of a pack; a longer node is a pack of its own.

        Yields:
            Each pack, with what was computed for its nodes and all that is above them.
        """
        groups = list(_groups(nodes, most))
        last_use = {above: number for number, group in enumerate(groups) for node in group for above in node.path()}
        for number, group in enumerate(groups):
            embeddings = self.embed(np.concatenate([node.token_ids for node in group]))
            pack = TreePack(group, computed, embeddings)
            pack.finish(self.hidden(embeddings, pack.positions(), pack))
            computed = computed | dict.fromkeys(group, pack)
            yield pack, computed
            computed = {node: held for node, held in computed.items() if last_use.get(node, -1) > number}

    def step(self, ids: torch.Tensor | TokenIds, positions: torch.Tensor, attending: Attending) -> torch.Tensor:
        """Compute the logits [sequences, vocabulary] of what follows a token of each of several sequences.

        Args:
            ids: token ids, int64 [sequences].
            positions: place of each token in its sequence, int64 [sequences].
            attending: computes the attention.
        """
        words = self.language.get_input_embeddings()
        return self.head(self.hidden(words(on_device(ids, words.weight.device)), positions, attending))


def _groups(nodes: Iterable[Node], tokens: int) -> Iterator[list[Node]]:
    """Cut a list of nodes into runs of at most so many tokens; a longer node is a run of its own."""
    group: list[Node] = []
    held = 0
    for node in nodes:
        if group and held + len(node.token_ids) > tokens:
            yield group
            group, held = [], 0
        group.append(node)
        held += len(node.token_ids)
    if group:
        yield group
