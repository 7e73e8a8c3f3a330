from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmtune.models.decoding.prefixes import common_prefix, in_tree_order, prefix_tree

# few tokens, so that many begin alike
sequences = st.lists(st.lists(st.integers(-2, 1), min_size=1, max_size=14), min_size=1, max_size=12)


@given(sequences, st.booleans())
def test_every_sequence_is_the_way_to_where_it_ends(lists: list[list[int]], share: bool) -> None:
    nodes = prefix_tree([np.array(keys) for keys in lists], share=share)
    assert sorted(i for node in nodes for i in node.ends) == list(range(len(lists)))
    for node in nodes:
        assert len(node.token_ids)
        assert node.start == (node.parent.end if node.parent else 0)
        for i in node.ends:
            assert np.concatenate([above.token_ids for above in node.path()]).tolist() == lists[i]


@given(sequences)
def test_a_parent_comes_first_and_what_is_below_it_follows(lists: list[list[int]]) -> None:
    nodes = prefix_tree([np.array(keys) for keys in lists])
    for before, node in itertools.pairwise(nodes):
        assert node.parent is None or node.parent in before.path()


@given(sequences)
def test_no_token_worth_sharing_stands_twice(lists: list[list[int]]) -> None:
    arrays = [np.array(keys) for keys in lists]
    nodes = prefix_tree(arrays)
    for one, other in itertools.combinations(nodes, 2):
        if one.parent is other.parent:
            assert common_prefix(one.token_ids, other.token_ids) < 4


@given(sequences)
def test_sequences_that_begin_alike_stand_together(lists: list[list[int]]) -> None:
    arrays = [np.array(keys) for keys in lists]
    order = in_tree_order(arrays)
    for length in range(1, 15):
        beginnings = [tuple(lists[i][:length]) for i in order]
        assert len([k for k, _ in itertools.groupby(beginnings)]) == len(set(beginnings))


def test_a_sequence_that_others_begin_with_ends_inside_the_tree() -> None:
    long, short = np.arange(9), np.arange(5)
    nodes = prefix_tree([long, short, short])
    assert [(node.token_ids.tolist(), node.ends) for node in nodes] == [(short.tolist(), [1, 2]), ([5, 6, 7, 8], [0])]
