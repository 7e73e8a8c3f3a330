"""What is asked together: every question once, families whole, never too much at a time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmtune.evaluation.run.chunks as chunks
from mmtune.data.images import EncodedImage
from mmtune.evaluation.run.chunks import plan_chunks
from mmtune.evaluation.tasks.render import Question


def question(row: int, prompt: str, *photos: str) -> Question:
    shown = tuple(EncodedImage(b"", name) for name in photos)
    return Question(
        row=row,
        prompt=prompt,
        options=(),
        target="x",
        references=("x",),
        kind="short",
        choices=(),
        images=shown,
        group=None,
    )


def family(one: Question) -> str:
    return one.images[0].sha256 if one.images else one.prompt.split("\n")[0]


PASSAGES = st.integers(0, 5).map(lambda n: f"passage {n} " + str(n) * (150 + 40 * n))
PHOTOS = st.lists(st.sampled_from([f"photo {n}" for n in range(6)]), max_size=2, unique=True)


@st.composite
def question_lists(draw: st.DrawFn) -> list[Question]:
    parts = draw(st.lists(st.tuples(PASSAGES, st.text("abc?", max_size=5), PHOTOS), min_size=1, max_size=40))
    texts = [(f"Context: {passage}\n{asked}", photos) for passage, asked, photos in parts]
    # what all prompts begin with passes for an instruction, so one must have another passage
    return [question(row, text, *photos) for row, (text, photos) in enumerate([("Context: none", []), *texts])]


@given(question_lists(), st.integers(1, 9), st.integers(2, 4), st.randoms())
def test_chunking(questions: list[Question], size: int, photos: int, shuffled: random.Random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "QUESTIONS", size)
        patch.setattr(chunks, "IMAGES", photos)
        planned = plan_chunks(questions)
        again = list(questions)
        shuffled.shuffle(again)
        assert plan_chunks(again) == planned, "depends on the order of the rows"
    assert sorted(q.row for chunk in planned for q in chunk) == [q.row for q in questions]
    assert all(0 < len(chunk) <= size for chunk in planned)
    assert all(len({p.sha256 for q in chunk for p in q.images}) <= photos for chunk in planned)
    ordered = [family(q) for chunk in planned for q in chunk]
    for name in set(ordered):
        first, last = ordered.index(name), len(ordered) - ordered[::-1].index(name)
        assert set(ordered[first:last]) == {name}, "a family is torn apart"
        seen = {p.sha256 for q in questions if family(q) == name for p in q.images}
        if last - first <= size and len(seen) <= photos:
            holding = [chunk for chunk in planned if any(family(q) == name for q in chunk)]
            assert len(holding) == 1, "a family that fits into a chunk is split"


def test_the_longest_family_comes_first() -> None:
    short, long = "s" * 300, "l" * 600
    questions = [question(0, short), question(1, long + "a"), question(2, "x", "photo"), question(3, long + "b")]
    assert [q.row for chunk in plan_chunks(questions) for q in chunk] == [2, 1, 3, 0]


def test_what_all_prompts_begin_with_makes_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "QUESTIONS", 2)
    instruction = "Please answer with care. " * 20
    questions = [question(n, f"{instruction}{n} {'x' * (900 - n * 100)}") for n in range(5)]
    assert [[q.row for q in chunk] for chunk in plan_chunks(questions)] == [[0, 1], [2, 3], [4]]
