"""Which option an answer names: the rules by example, and what must hold for any list of options."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmtune.verify.extraction import parse
from mmtune.verify.option_names import LETTERS, bare_letter, option_named

# every way of extraction in the shipped tasks that finds an option by its text, and some more
SETTINGS = [
    ["first_clause", "option_text"],
    ["first_clause", "option_words"],
    ["first_line", "option_text", "leading_letter"],
    ["first_clause", "option_text", "true_false", "number_words"],
    ["option_text"],
    ["option_words"],
    ["vqa_normalise", "option_text"],
]
ALIKE = [
    ["\u22125", "-5", "5", "- 5", "+5", "5.0"],
    ["1/2", "12", "\u00bd", "0.5", "1 2", "1:2", "2/4"],
    ["10%", "10", "10 %", "10.0", "$10", "1,0"],
    ["x>5", "x<5", "x=5", "x-5", "x5", "x^5", "x\u2075"],
    ["<", ">", "=", "+", "-", "*", "/", "?", "!", "."],
    ["C++", "C#", "C/C++", "c++"],
    ["The Elephant Man", "the Elephant man", "The elephant man.", '"The Elephant Man"'],
    ["Paris, France", "Paris", "Dr. Smith", "Dr", 'say "no"', 'say "yes"'],
    ["8:00", "800", "8.00", "B: x", "(A)", "A.", "A-", "A+"],
    ["first", "\ufb01rst", "st", "\ufb06", "\u017f", "\u212a"],
    ["the man runs", "the man runs away", "away the man runs"],
    ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
]
WORDS = [f"word {letter}" for letter in LETTERS]
OPTIONS = st.one_of(
    st.lists(st.sampled_from([text for texts in ALIKE for text in texts]), min_size=2, max_size=6),
    st.sampled_from(ALIKE).flatmap(st.permutations),
    st.lists(st.text(max_size=8), min_size=2, max_size=6),
)


@settings(max_examples=300, deadline=None)
@given(OPTIONS, st.sampled_from(SETTINGS))
def test_the_exact_text_of_an_option_names_it(options: list[str], steps: list[str]) -> None:
    assume(len({option.strip() for option in options}) == len(options))
    for letter, option in zip(LETTERS, options, strict=False):
        if option.strip() and bare_letter(option, options) is None:  # a letter is read as a letter
            assert parse(option, steps, "letter", options) == letter
            if not set('"\n') & set(option):
                assert parse(f"{option}\nbecause", steps, "letter", options) == letter
                assert parse(f'{option}" it is', steps, "letter", options) == letter


@settings(max_examples=300, deadline=None)
@given(OPTIONS, st.sampled_from(SETTINGS), st.data())
def test_shuffled_options_shuffle_the_answer(options: list[str], steps: list[str], data: st.DataObject) -> None:
    """Also where two options are the same: then none is named."""
    steps = [step for step in steps if step != "leading_letter"]
    said = data.draw(st.sampled_from(options) | st.sampled_from([o.lower() + "." for o in options]) | st.text())
    assume(not re.match(r"\W*[A-Za-z]\b", said))  # which may be read as a letter
    shuffled = data.draw(st.permutations(options))
    one, other = (parse(said, steps, "letter", some) for some in (options, shuffled))
    named = [
        None if found is None else some[LETTERS.index(found)] for found, some in ((one, options), (other, shuffled))
    ]
    assert named[0] == named[1]
    assert named[0] is None or options.count(named[0]) == 1


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        # the exact text, then case and typography, then punctuation, then the value
        ("-5", ["5", "\u22125"], "B"),
        ("5", ["\u22125", "x"], None),
        ("12", ["1/2", "x"], None),
        ("1/2", ["12", "\u00bd"], "B"),
        ("0.50", ["\u00bd", "2"], "A"),
        ("10", ["10%", "x"], None),
        ("10 %", ["10", "10%"], "B"),
        ("x<5", ["x>5", "x<5."], "B"),
        ("C", ["C++", "C#"], None),
        ("the elephant man", ["The Elephant Man", "the Elephant man"], None),
        ("the Elephant man", ["The Elephant Man", "the Elephant man"], "B"),
        ("two dogs!", ["a cat", "Two dogs."], "B"),
        ("\u201cTwo dogs\u201d", ["a cat", "Two dogs."], "B"),
        ("1000", ["1,000", "100"], "A"),
        ("3", ["3.0", "30"], "A"),
        ("CO\u2082", ["CO", "co2"], "B"),
        ("same", ["same", "same", "other"], None),
        # letters are plain A to Z
        ("(b)", ["x", "y"], "B"),
        ("\u201cB\u201d", ["x", "y"], "B"),
        ("\ufb06", WORDS, None),
        ("\u017f", WORDS, None),
        ("\u0131", WORDS, None),
        ("\u212a", WORDS, None),
        ("\uff21", ["x", "y"], None),
        ("A-", ["A+", "A", "A-"], "C"),
        ("C++", ["Java", "Rust", "Go"], None),
        ("", ["", "x"], None),
    ],
)
def test_which_option_is_named(said: str, options: list[str], expected: str | None) -> None:
    assert option_named(said, options) == expected


def test_of_two_options_whose_words_were_all_said_none_is_the_first() -> None:
    assert parse("a dog and a cat", ["option_words"], "letter", ["a dog", "a cat"]) is None
    assert parse("a dog and a cat", ["option_words"], "letter", ["a dog", "a cat and a dog"]) == "B"


@pytest.mark.parametrize("said", ["", " ", "  ", "\n", " \nyes", ' "'])
def test_an_answer_that_says_nothing_picks_no_option_of_spaces(said: str) -> None:
    assert parse(said, ["option_text"], "letter", [" ", "  ", "no"]) is None


def test_a_mark_inside_an_option_is_no_end() -> None:
    options = ["3", "3.5", "Paris", "Paris, France"]
    for letter, said in zip("ABCD", options, strict=True):
        assert parse(f'{said}"', ["first_clause", "option_text"], "letter", options) == letter
    shuffled = options[:]
    random.Random(1).shuffle(shuffled)
    assert (
        parse("paris, france", ["first_clause", "option_text"], "letter", shuffled)
        == "ABCD"[shuffled.index("Paris, France")]
    )
