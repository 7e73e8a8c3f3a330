"""Attention of sequences that grow by one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F

from mmtune.common.devices import on_device
from mmtune.models.attention.tree import Computed
from mmtune.models.decoding.prefixes import Node

Layer: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Keys and values."""

_ROOM = 256  # tokens by which the room of all sequences grows


@dataclass
class Step:
    """Places of the newest token of several sequences, on the device.

    Attributes:
        rows: numbers of the sequences, int64 [sequences].
        newest: place of the newest token of each, int64 [sequences].
        tokens: number of places that attention looks at; those behind a sequence's newest token are masked.
        masks: masks of the step that were made so far, by window; see `Decoding.attend`.
    """

    rows: torch.Tensor
    newest: torch.Tensor
    tokens: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)


class Blocks:
    """Keys and values of several sequences: two tensors [sequences, heads, room, width] a layer.

    Attributes:
        lengths: tokens of each sequence, int64 [sequences].
    """

    def __init__(self, sequences: int, room: int) -> None:
        """
        Args:
            sequences: the most there will be.
            room: tokens that each may have at first.
        """
        self._sequences, self._room = sequences, room
        self._layers: list[Layer] = []
        self.lengths = torch.zeros(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The most tokens that a sequence has."""
        return int(self.lengths.max()) if len(self) else 0

    def append(self, layers: Sequence[Layer], tokens: int) -> None:
        """Add a sequence of so many tokens, [heads, tokens, width] each."""
        if not self._layers:
            self._layers = [(self._empty(keys), self._empty(values)) for keys, values in layers]
        for blocks, given in zip(self._layers, layers, strict=True):
            for block, one in zip(blocks, given, strict=True):
                block[len(self), :, :tokens] = one[:, :tokens]
        self.lengths = torch.cat([self.lengths, torch.tensor([tokens])])

    def remove(self, place: int) -> None:
        """Drop a sequence; the last one takes its place."""
        last = len(self) - 1
        if place != last:
            length = int(self.lengths[last])
            for blocks in self._layers:
                for block in blocks:
                    block[place, :, :length] = block[last, :, :length]
        self.lengths = without(self.lengths, place)

    def grow(self) -> None:
        """Make room for the next token of every sequence; its place is `lengths - 1`."""
        self.lengths = self.lengths + 1
        if self.longest > self._room:
            self._sequences, self._room = len(self), self.room_after_growth()
            self._layers = [(self._grown(keys), self._grown(values)) for keys, values in self._layers]

    def room_after_growth(self) -> int:
        """The room of each sequence once all have one token more than the longest has."""
        return self._room if self.longest < self._room else self._room + _ROOM

    def write(self, layer: int, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fill in the newest token of every sequence of a step: [sequences, heads, width]."""
        self._layers[layer][0][step.rows, :, step.newest] = keys
        self._layers[layer][1][step.rows, :, step.newest] = values

    def layer(self, layer: int, sequences: int, tokens: int) -> Layer:
        """Keys and values of a layer, [sequences, heads, tokens, width]."""
        keys, values = self._layers[layer]
        return keys[:sequences, :, :tokens], values[:sequences, :, :tokens]

    @property
    def capacity(self) -> tuple[int, int]:
        """Sequences and tokens of each that there is room for."""
        return self._sequences, self._room

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the device and type of the keys."""
        return self._layers[0][0]

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self._sequences, like.shape[0], self._room, like.shape[2])

    def _grown(self, block: torch.Tensor) -> torch.Tensor:
        grown = self._empty(block[0])
        grown[:, :, : block.shape[2]] = block[: len(self)]
        return grown


class Decoding:
    """Sequences that grow by one token at a time.

    Where several sequences follow one prompt, keys and values of the prompts stand once, apart from what each sequence
    has of its own; otherwise all of a sequence stands together, which is faster.
    """

    def __init__(self, prompts: Sequence[int], samples: Sequence[int], most: int) -> None:
        """
        Args:
            prompts: tokens of each prompt.
            samples: how many sequences follow each.
            most: tokens that a sequence may grow by.
        """
        first = min(most, _ROOM)
        shared = max(samples) > 1
        self._own = Blocks(sum(samples), first if shared else max(prompts) + first)
        self._prompts = Blocks(len(prompts), max(prompts)) if shared else None
        self._prompt_of = torch.zeros(0, dtype=torch.long)
        self._step = Step(self._own.lengths, self._own.lengths, 0)
        # on the device: the sequences of each prompt, the prompt of each sequence, and its number among those
        self._by_prompt = self._prompts_here = self._slot = self._prompt_of

    def __len__(self) -> int:
        return len(self._own)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each sequence so far: int64 [sequences]."""
        return self._own.lengths if self._prompts is None else self._own.lengths + self._before()

    @property
    def tokens_after_growth(self) -> int:
        """How many tokens there is room for once every sequence has grown by one."""
        prompts = 0 if self._prompts is None else len(self._prompts) * self._prompts.longest
        return prompts + len(self) * self._own.room_after_growth()

    def add(self, node: Node, computed: dict[Node, Computed], sequences: int) -> None:
        """Add sequences that follow a node; `computed` has what was computed for it and for the nodes above it."""
        parts = [
            [computed[above].keys_and_values(layer, above) for above in node.path()]
            for layer in range(computed[node].layers)
        ]
        layers = [(torch.cat([k for k, _ in part], 1), torch.cat([v for _, v in part], 1)) for part in parts]
        if self._prompts is not None:
            self._prompt_of = torch.cat([self._prompt_of, torch.full((sequences,), len(self._prompts))])
            self._prompts.append(layers, node.end)
        for _ in range(sequences):
            self._own.append(layers, 0 if self._prompts is not None else node.end)

    def remove(self, place: int) -> None:
        """Drop a sequence; the last one takes its place."""
        self._own.remove(place)
        if self._prompts is not None:
            prompt, last = int(self._prompt_of[place]), len(self._prompts) - 1
            self._prompt_of = without(self._prompt_of, place)
            if prompt not in self._prompt_of:
                self._prompts.remove(prompt)
                self._prompt_of[self._prompt_of == last] = prompt

    def grow(self) -> Step:
        """Make room for the next token of every sequence, at the places of the step that is returned and taken."""
        self._own.grow()
        device = self._own.like.device
        newest = on_device(self._own.lengths - 1, device)
        self._step = Step(torch.arange(len(self), device=device), newest, self._own.longest)
        if self._prompts is not None:
            counts = torch.bincount(self._prompt_of, minlength=len(self._prompts))
            order = self._prompt_of.argsort(stable=True)
            first = counts.cumsum(0) - counts
            slot = torch.empty_like(order)
            slot[order] = torch.arange(len(order)) - first[self._prompt_of[order]]
            by_prompt = torch.zeros(len(counts), int(counts.max()), dtype=torch.long)
            by_prompt[self._prompt_of, slot] = torch.arange(len(order))
            self._by_prompt, self._prompts_here, self._slot = (
                on_device(places, device) for places in (by_prompt, self._prompt_of, slot)
            )
        return self._step

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Sequences and tokens of each that there is room for where they are; None where several share a prompt.

        Within this room, steps may be computed in the same places of memory: see `use_step`.
        """
        return self._own.capacity if self._prompts is None else None

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self._own.like.device

    def use_step(self, step: Step) -> None:
        """Take the newest tokens of a step from given tensors, which may have more rows than there are sequences."""
        self._step = step

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
        """As `TreePack.attend`, for [1, heads, sequences, width]; the result is [1, sequences, heads, width]."""
        step, count = self._step, query.shape[2]
        self._own.write(layer, step, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys, values = self._own.layer(layer, count, step.tokens)
        # the queries of the heads that share keys stand in a row
        grouped = query[0].transpose(0, 1).reshape(count, key.shape[1], -1, query.shape[3])
        mask = self._mask(None if window is None or self._reach(step) <= window else window)
        scale = scale or query.shape[3] ** -0.5
        if self._prompts is not None:
            prompts = self._prompts.layer(layer, len(self._prompts), self._prompts.longest)
            out = self._attend_to_both(prompts, grouped, keys, values, mask, scale)
        elif query.is_cuda:
            out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        else:  # a third faster on two cores than the CPU's fused kernel, which is made for many queries
            out = (grouped @ keys.transpose(2, 3) * scale + mask).softmax(-1) @ values
        return out.reshape(1, count, query.shape[1], value.shape[3])

    def keys_and_values(self, layer: int, node: Node) -> Layer:
        """What a layer computed for the first sequence, as far as a node goes: two [heads, tokens, width]."""
        keys, values = self._own.layer(layer, 1, node.end)
        return keys[0], values[0]

    @property
    def layers(self) -> int:
        """How many layers were computed."""
        return self._own.layers

    def _attend_to_both(
        self,
        prompts: Layer,
        grouped: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Attention to the prompts, all sequences of one at once, and to what each sequence has of its own."""
        before = prompts[0].shape[2]
        to_prompts = self._each(self._together(grouped) @ prompts[0].transpose(2, 3), grouped.shape[2])
        scores = torch.cat([to_prompts, grouped @ keys.transpose(2, 3)], -1) * scale + mask
        shares = scores.float().softmax(-1).to(values.dtype)
        from_prompts = self._each(self._together(shares[..., :before]) @ prompts[1], grouped.shape[2])
        return from_prompts + shares[..., before:] @ values

    def _together(self, rows: torch.Tensor) -> torch.Tensor:
        """From [sequences, heads, queries, any] to [prompts, heads, sequences of each x queries, any]."""
        return rows[self._by_prompt].transpose(1, 2).flatten(2, 3)

    def _each(self, rows: torch.Tensor, queries: int) -> torch.Tensor:
        """The way back from `_together`."""
        return rows.unflatten(2, (-1, queries)).transpose(1, 2)[self._prompts_here, self._slot]

    def _before(self) -> torch.Tensor:
        """Tokens of each sequence's prompt."""
        assert self._prompts is not None
        return self._prompts.lengths[self._prompt_of]

    def _reach(self, step: Step) -> int:
        """The most tokens that one of the newest tokens may see."""
        return step.tokens if self._prompts is None else step.tokens + self._prompts.longest

    def _mask(self, window: int | None) -> torch.Tensor:
        """What each sequence's newest token sees, so many tokens back, itself included: 0 or -inf.

        Float [sequences, 1, 1, keys].
        """
        step = self._step
        if window not in step.masks:
            places, newest = torch.arange(step.tokens, device=step.newest.device)[None], step.newest[:, None]
            hidden = places > newest
            if window is not None:
                hidden |= places <= newest - window
            if self._prompts is not None:
                hidden = torch.cat([self._prompts_hidden(newest, window), hidden], 1)
            mask = self._own.like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
            step.masks[window] = mask[:, None, None]
        return step.masks[window]

    def _prompts_hidden(self, newest: torch.Tensor, window: int | None) -> torch.Tensor:
        """Which places of its prompt a sequence's newest token does not see: bool [sequences, tokens]."""
        assert self._prompts is not None
        before = on_device(self._before(), newest.device)[:, None]
        places = torch.arange(self._prompts.longest, device=newest.device)[None]
        hidden = places >= before
        return hidden if window is None else hidden | (places <= before + newest - window)


def without(values: torch.Tensor, place: int) -> torch.Tensor:
    """Values without one of them; the last one takes its place."""
    values = values.clone()
    values[place] = values[-1]
    return values[:-1]
