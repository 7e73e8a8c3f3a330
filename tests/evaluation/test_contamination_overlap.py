"""Which words in common count."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.evaluation.contamination.text import COMMON, NGRAM, RowText, TextIndex, normalise

VOCABULARY = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "po", "ra", "su") for b in ("len", "mir", "nax", "tor")]
WORDS = st.sampled_from(VOCABULARY)
# what may stand between two words without changing them
BREAKS = st.sampled_from([" ", ", ", "\n", " – ", '" (', "... ", "\t\t", "; ", "_", "/", " “"])
CASES = st.sampled_from([str.lower, str.upper, str.title])


def row(text: str, question: str = "", options: str = "", source: str | None = None) -> RowText:
    return RowText(text, question, options, text if source is None else source)


def dressed(data: st.DataObject, words: list[str]) -> str:
    """The words in some other case, with other marks between them."""
    return "".join(data.draw(CASES)(word) + data.draw(BREAKS) for word in words)


@given(
    planted=st.lists(WORDS, min_size=NGRAM, max_size=2 * NGRAM),
    before=st.lists(st.sampled_from(["x1", "x2"]), max_size=30),
    after=st.lists(st.sampled_from(["y1", "y2"]), max_size=30),
    around=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    data=st.data(),
)
def test_13_words_are_found_wherever_they_stand_and_however_they_are_written(
    planted: list[str], before: list[str], after: list[str], around: tuple[int, int], data: st.DataObject
) -> None:
    own = ["p"] * around[0] + planted + ["q"] * around[1]
    index = TextIndex([[row("other words altogether"), row(" ".join(own))]])
    [found] = index.find(dressed(data, [*before, *planted, *after]))
    assert (found.row, found.kind, found.words) == (1, "text", " ".join(planted))


@given(planted=st.lists(WORDS, min_size=1, max_size=NGRAM - 1), data=st.data())
def test_12_words_are_not(planted: list[str], data: st.DataObject) -> None:
    index = TextIndex([[row(" ".join(["p"] * 40 + planted + ["q"] * 40))]])
    assert index.find(dressed(data, ["x"] * 20 + planted + ["y"] * 20)) == []


@given(
    words=st.lists(WORDS, min_size=40, max_size=120),
    text=st.lists(WORDS, min_size=5, max_size=80),
    cuts=st.tuples(st.integers(0, 39), st.integers(0, 40)),
)
def test_what_is_found_is_the_longest_run_in_common(words: list[str], text: list[str], cuts: tuple[int, int]) -> None:
    """Against all pairs of places."""
    text = text + words[cuts[0] : cuts[0] + cuts[1]]
    runs = [
        length
        for i in range(len(words))
        for j in range(len(text))
        for length in range(NGRAM, min(len(words) - i, len(text) - j) + 1)
        if words[i : i + length] == text[j : j + length]
    ]
    found = TextIndex([[row(" ".join(words))]]).find(" ".join(text))
    assert [len(one.words.split()) for one in found if one.kind == "text"] == ([max(runs)] if runs else [])


def test_equal_neighbours_in_the_training_text_that_stand_apart_in_the_row() -> None:
    """Two n-grams of the row that follow each other in the training text alone are not one longer overlap."""
    letters = [f"w{n}" for n in range(NGRAM + 1)]
    whole = " ".join([*letters[:-1], "gap", *letters[1:]])
    [found] = TextIndex([[row(whole)]]).find(" ".join(letters))
    assert len(found.words.split()) == NGRAM


def test_words() -> None:
    assert normalise("Don’t STOP—it's 3.5 km!") == ["dont", "stop", "its", "3", "5", "km"]
    assert normalise("A: first\n (B) second\n\t3. third\nD) e.g. fourth") == [
        "first", "second", "third", "e", "g", "fourth",
    ]  # fmt: skip
    assert normalise("ﬁne Ｗｉｄｅ STRASSE straße") == ["fine", "wide", "strasse", "strasse"]
    assert normalise("日本語 text") == ["日", "本", "語", "text"]
    assert normalise("<image>\n!?") == ["image"]


QUESTION = "do ostriches of the savanna bury their heads when frightened"


@pytest.mark.parametrize(
    ("training", "found"),
    [
        (f"Passage: none. Q: {QUESTION.upper()}? A: no", [("question", QUESTION)]),
        (QUESTION.replace("bury", "hide"), []),
        (f"{QUESTION}s are rare", []),  # no part of a word
        (" ".join(QUESTION.split()[:-1]), []),
    ],
)
def test_a_question_alone_must_stand_there_whole(training: str, found: list[tuple[str, str]]) -> None:
    index = TextIndex([[row(f"A long passage on birds.\n{QUESTION}?", f"{QUESTION}?")]])
    assert [(one.kind, one.words) for one in index.find(training)] == found


def test_questions_of_fewer_than_8_words_are_not_compared() -> None:
    index = TextIndex([[row("Is there a spoon in the image?", "Is there a spoon in the image?")]])
    assert index.find("Is there a spoon in the image?") == []
    assert index.comparable == frozenset()


def test_questions_that_would_fit_any_passage_are_not_compared() -> None:
    generic = "Which of the following is {} according to the passage?"
    rows = [row(f"Passage {n}\n{generic.format(a)}", generic.format(a), source=f"passage {n}")
            for n, a in enumerate(["true", "false", "right", "wrong", "true"])]  # fmt: skip
    rows.append(row(f"Passage on birds\n{QUESTION}", QUESTION, source="birds"))
    index = TextIndex([rows])
    assert index.find(generic.format("right")) == []
    assert [one.row for one in index.find(QUESTION)] == [5]


def test_a_short_text_counts_as_a_whole() -> None:
    index = TextIndex([[row("the bear sleeps\nall through the long cold winter", "all through the long cold winter")]])
    [found] = index.find("He said: the bear sleeps, all through the long cold winter; then it wakes")
    assert (found.kind, len(found.words.split())) == ("text", 9)
    assert index.find("the bear sleeps all through the long winter") == []


def test_options_are_found_though_an_instruction_and_letters_stand_between() -> None:
    options = ["puppies learning tricks", "flowers wilting slowly", "plants sprouting leaves"]
    index = TextIndex([[row("\n".join(["Which is learned?", *options]), "Which is learned?", "\n".join(options))]])
    lettered = "\n".join(f"{letter}: {option}" for letter, option in zip("ABC", options, strict=True))
    [found] = index.find(f"Which is learned? Choose the best option from below:\n{lettered}")
    assert found.words == " ".join(options)


@pytest.mark.parametrize(("sources", "hit"), [(COMMON, True), (COMMON + 1, False)])
def test_words_that_rows_on_many_things_share_are_the_sets_own_way_of_asking(sources: int, hit: bool) -> None:
    phrase = "read the passage below about an experiment and then follow all of the instructions given"
    rows = [row(f"{phrase} {n}", source=f"passage {n}") for n in range(sources)]
    assert bool(TextIndex([rows]).find(phrase)) == hit
    one_passage = [row(f"{phrase} {n}", source="the same passage") for n in range(sources)]
    assert len(TextIndex([one_passage]).find(phrase)) == sources
    assert len(TextIndex([rows[: COMMON // 2 + 1], rows[COMMON // 2 + 1 :]]).find(phrase)) == sources  # of two tasks


def test_many_rows_and_their_own_numbers() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(VOCABULARY, k=60)) for _ in range(200)]
    index = TextIndex([list(map(row, texts[:50])), [], list(map(row, texts[50:]))])
    for number in (0, 49, 50, 199):
        assert {one.row for one in index.find(texts[number])} == {number}
    assert TextIndex([]).find(texts[0]) == []
