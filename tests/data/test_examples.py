"""Examples in little memory are those that were put in."""

from __future__ import annotations

import errno
import pickle
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.common import disk
from mmtune.data import example_store as examples_module
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import Example
from mmtune.data.example_store import Examples, ExampleStore
from mmtune.interfaces import Turn

ROWS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(-200, 2**31 - 1), st.booleans()), max_size=9),
        st.sampled_from(["a.jsonl", "b.parquet", "me/mine"]),
        st.integers(1, 2**40),
        st.lists(st.sampled_from([Path("a.png"), Path("b.png"), b"bytes"]), max_size=2),
        st.integers(0, 3),
    ),
    max_size=12,
)


def made(row: tuple[list[tuple[int, bool]], str, int, list[Path | bytes], int]) -> tuple[Example, Conversation]:
    tokens, source, number, images, cut = row
    conversation = Conversation((Turn("user", "a"), Turn("assistant", "b")), tuple(images), source, number)
    ids = np.asarray([i for i, _ in tokens], dtype=np.int32)
    learnt = np.asarray([s for _, s in tokens], dtype=bool)
    return Example(ids, learnt, tuple(images), conversation.where, cut), conversation


def same(one: Example, other: Example) -> bool:
    arrays = zip((one.input_ids, one.supervised), (other.input_ids, other.supervised), strict=True)
    same_arrays = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)
    return same_arrays and (one.images, one.where, one.cut) == (other.images, other.where, other.cut)


@given(rows=ROWS, in_memory=st.sampled_from([0, 40, 2**26]), data=st.data())
def test_what_comes_out_is_what_was_put_in(rows: list[object], in_memory: int, data: st.DataObject) -> None:
    given = [made(row) for row in rows]  # type: ignore[arg-type]
    store = ExampleStore()
    with mock.patch.object(examples_module, "_IN_MEMORY", in_memory):
        assert [store.add(example, conversation) for example, conversation in given] == list(range(len(rows)))
    order = data.draw(st.permutations(range(len(rows))))
    examples = Examples(store, order)
    for found in (examples, pickle.loads(pickle.dumps(examples))):
        assert len(found) == len(order)
        assert all(same(one, given[number][0]) for one, number in zip(found, order, strict=True))
        assert all(same(found[place], given[number][0]) for place, number in enumerate(order))
        assert found.lengths == [len(given[number][0]) for number in order]
        assert list(found[1:3]) == [] or same(found[1:3][0], given[order[1]][0])
    for number, (example, conversation) in enumerate(given):
        assert store.kind(number) == (conversation.source, bool(conversation.images))
        assert store.images(number) == example.images


def test_a_photo_that_many_rows_show_is_kept_once() -> None:
    store = ExampleStore()
    for number in range(3):
        store.add(*made(([(1, True)], "a", number + 1, [Path("/photos") / "a.png"], 0)))
    assert len({id(photo) for number in range(3) for photo in store.images(number)}) == 1


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(examples_module, "_IN_MEMORY", 3)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left") as error:
        ExampleStore().add(*made(([(1, True)], "a", 1, [], 0)))
    assert disk.trouble(error.value) is not None
    assert tempfile.gettempdir() in disk.advice(disk.trouble(error.value))
