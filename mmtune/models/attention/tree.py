"""Attention for inference that computes no token twice and none for padding.

`TreePack` computes the nodes of a prefix tree side by side: a node's tokens see those of the nodes above it, which were
computed in the same pass or in an earlier one. It stands in for transformers' attention where that is set to `TREE`, as
`mmtune.models.attention.decoding.Decoding` does, which computes one more token for each of several sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from mmtune.common.devices import on_device
from mmtune.models.decoding.prefixes import Node

TREE = "mmtune_tree"
_ROWS = 128  # queries attended to at once: the keys after them are left out, and short neighbours share a call


@dataclass(frozen=True, slots=True)
class _Call:
    """Neighbouring queries of a pack whose keys are the same nodes.

    Attributes:
        rows: the queries' places in the pack.
        above: the nodes above them that an earlier pack computed, from the beginning.
        within: the places in this pack of the keys, from the beginning.
        mask: float [queries, keys], 0 where they are seen and -inf where not; None where all are seen.
        places: of the queries in their sequences, int64 [queries].
        places_of_keys: the same of the keys.
        windowed: masks that were made for a window, by its tokens.
    """

    rows: slice
    above: tuple[Node, ...]
    within: tuple[slice, ...]
    mask: torch.Tensor | None
    places: torch.Tensor
    places_of_keys: torch.Tensor
    windowed: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask_within(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """The mask for queries that see so many tokens back, themselves included; of the type and device of `like`."""
        if window is None or int(self.places.max()) < window:
            return self.mask
        if window not in self.windowed:
            mask = like.new_zeros(len(self.places), len(self.places_of_keys)) if self.mask is None else self.mask
            beyond = self.places[:, None] - self.places_of_keys[None] >= window
            self.windowed[window] = mask.masked_fill(on_device(beyond, mask.device), float("-inf"))
        return self.windowed[window]


class Computed(Protocol):
    """TokenIds and values of nodes that were computed."""

    @property
    def layers(self) -> int:
        """How many layers were computed."""
        ...

    def keys_and_values(self, layer: int, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer computed for a node: two [heads, tokens, width]."""
        ...


class Attending(Protocol):
    """What takes the place of a model's attention."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """One layer's attention; see `TreePack.attend`."""
        ...


class TreePack:
    """Nodes of a prefix tree that are computed in one pass.

    Attributes:
        nodes: each after its parent.
        offsets: where each node's tokens begin in the pack.
        tokens: how many there are.
        hidden: the last hidden states [tokens, hidden], once computed.
    """

    def __init__(self, nodes: Sequence[Node], earlier: dict[Node, Computed], like: torch.Tensor) -> None:
        """Plan the pass.

        Args:
            nodes: each after its parent, which is among them or in an earlier pack.
            earlier: the packs that computed the nodes above.
            like: a tensor of the device and type that the model computes in.
        """
        self.nodes = nodes
        starts = [0, *itertools.accumulate(len(node.token_ids) for node in nodes)]
        self.offsets = dict(zip(nodes, starts, strict=False))
        self.tokens = starts[-1]
        self.hidden = like.new_empty(0)
        self._earlier = {above: earlier[above] for node in nodes for above in node.path() if above not in self.offsets}
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._places = torch.cat([torch.arange(node.start, node.end) for node in nodes])
        self._calls = [call for group in self._neighbours() for call in self._plan(group, like)]

    def positions(self) -> torch.Tensor:
        """The place of each token in its sequence: int64 [tokens]."""
        return self._places

    def rows(self, node: Node) -> slice:
        """The places of a node's tokens in the pack."""
        return slice(self.offsets[node], self.offsets[node] + len(node.token_ids))

    @property
    def layers(self) -> int:
        """How many layers were computed."""
        return len(self._layers)

    def keys_and_values(self, layer: int, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer computed for a node: two [heads, tokens, width]."""
        keys, values = self._layers[layer]
        rows = self.rows(node)
        return keys[:, rows], values[:, rows]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """One layer's attention, [1, heads, tokens, width] each; the result is [1, tokens, heads, width].

        Args:
            layer: its number.
            query: of the pack's tokens.
            key: of the same.
            value: of the same.
            scale: of the scores; None takes the root of the width.
            window: tokens that a query sees back, itself included; None sees all.
        """
        if layer != len(self._layers):
            raise ValueError(f"layer {layer} after {len(self._layers)} layers")
        self._layers.append((key[0], value[0]))
        out = query.new_empty(1, self.tokens, query.shape[1], value.shape[3])
        for call in self._calls:
            before = [self._earlier[node].keys_and_values(layer, node) for node in call.above]
            keys = [k for k, _ in before] + [key[0, :, rows] for rows in call.within]
            values = [v for _, v in before] + [value[0, :, rows] for rows in call.within]
            seen = F.scaled_dot_product_attention(
                query[:, :, call.rows],
                torch.cat(keys, 1)[None] if len(keys) > 1 else keys[0][None],
                torch.cat(values, 1)[None] if len(values) > 1 else values[0][None],
                attn_mask=call.mask_within(window, query),
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            out[:, call.rows] = seen.transpose(1, 2)
        return out

    def finish(self, hidden: torch.Tensor) -> None:
        """Keep the last hidden states [tokens, hidden], and let go of the earlier packs."""
        self.hidden = hidden
        self._earlier = {}

    def _neighbours(self) -> Iterator[list[Node]]:
        """Runs of nodes of one parent, short enough to be attended to together."""
        group: list[Node] = []
        for node in self.nodes:
            tokens = sum(len(n.token_ids) for n in group) + len(node.token_ids)
            if group and (node.parent is not group[0].parent or tokens > _ROWS):
                yield group
                group = []
            group.append(node)
        yield group

    def _plan(self, group: list[Node], like: torch.Tensor) -> Iterator[_Call]:
        """Calls for a run of siblings: one for all, or several for one long node."""
        parent = group[0].parent
        path = parent.path() if parent else []
        above = tuple(node for node in path if node not in self.offsets)
        inside = tuple(self.rows(node) for node in path if node in self.offsets)
        before = parent.end if parent else 0
        begin, end = self.offsets[group[0]], self.rows(group[-1]).stop
        for start in range(begin, end, _ROWS):
            stop = min(start + _ROWS, end)
            own = torch.zeros(stop - start, stop - begin, dtype=torch.bool)
            for node in group:
                first = self.offsets[node] - begin
                length = min(len(node.token_ids), stop - begin - first)
                rows = slice(max(0, first - (start - begin)), first + length - (start - begin))
                causal = torch.ones(length, length, dtype=torch.bool).tril()
                own[rows, first : first + length] = causal[length - (rows.stop - rows.start) :]
            mask = None
            if not bool(own.all()):
                mask = like.new_zeros(stop - start, before + stop - begin)
                mask[:, before:].masked_fill_(on_device(~own, mask.device), float("-inf"))
            places, seen = self._places[start:stop], torch.cat([torch.arange(before), self._places[begin:stop]])
            yield _Call(slice(start, stop), above, (*inside, slice(begin, stop)), mask, places, seen)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: Attending,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    return tree.attend(module.layer_idx, query, key, value, scale=scaling, window=sliding_window), None


AttentionInterface.register(TREE, _attention)
