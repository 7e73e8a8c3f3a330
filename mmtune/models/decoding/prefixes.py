"""Token sequences as a tree in which what several begin with stands once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]
"""A sequence as integers that are equal where its tokens are: token ids, and below 0 the places of photos."""

_WORTH_SHARING = 4  # tokens; computing fewer twice costs less than attending to them apart


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens that all sequences below it have in common.

    Attributes:
        start: how many tokens stand before it.
        token_ids: its tokens.
        parent: the node before it, or None.
        ends: which sequences end with its last token.
    """

    start: int
    token_ids: TokenIds
    parent: Node | None
    ends: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """How many tokens stand before what follows it."""
        return self.start + len(self.token_ids)

    def path(self) -> list[Node]:
        """The nodes from the beginning of the sequence to this one."""
        return [*self.parent.path(), self] if self.parent else [self]


def prefix_tree(sequences: Sequence[TokenIds], *, share: bool = True) -> list[Node]:
    """Put sequences into a tree.

    Args:
        sequences: none is empty.
        share: False gives every sequence a node of its own.

    Returns:
        The nodes, each after its parent and directly followed by all that is below it. Following the parents of the
        node where a sequence ends gives its tokens.
    """
    if not share:
        return [Node(0, ids, None, [number]) for number, ids in enumerate(sequences)]
    order = in_tree_order(sequences)
    common = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]
    return list(_nodes(sequences, order, [*common, 0], 0, len(order), None))


def in_tree_order(sequences: Sequence[TokenIds]) -> list[int]:
    """The sequences' numbers, those that begin alike next to each other."""
    return sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())


def common_prefix(first: TokenIds, second: TokenIds) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _nodes(
    sequences: Sequence[TokenIds], order: list[int], common: list[int], begin: int, end: int, parent: Node | None
) -> Iterator[Node]:
    """The nodes of the sorted sequences begin..end, which all begin with what `parent` ends with.

    common[i]: how many tokens the i-th has in common with the one before it.
    """
    start = parent.end if parent else 0
    while begin < end:
        # the sequences that share something worth it with the first
        until = begin + 1
        while until < end and common[until] - start >= _WORTH_SHARING:
            until += 1
        first = sequences[order[begin]]
        shared = min([len(first), *common[begin + 1 : until]])
        node = Node(start, first[start:shared], parent)
        # sorted, those that end here come first
        below = begin
        while below < until and len(sequences[order[below]]) == shared:
            node.ends.append(order[below])
            below += 1
        yield node
        yield from _nodes(sequences, order, common, below, until, node)
        begin = until
