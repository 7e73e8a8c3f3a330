"""Extraction: the rules by example, and what must hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.evaluation.answers import KINDS, STEPS, matches, parse, plain

OPTIONS = ["a red fox", "Two dogs.", "don't know"]
TEXTS = st.text(max_size=40) | st.sampled_from(["A", " b", "Yes.", "true", "two dogs", 'C"', "none", "\n", "D: x"])
OPTION_LISTS = st.lists(st.text(max_size=12) | st.sampled_from(["A", "B", "yes"]), max_size=6)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A", "A"),
        ('b"', "B"),
        (" C. don't know", "C"),
        ("B: Two dogs.", "B"),
        ("two dogs", "B"),
        ("Dont know!", "C"),
        ("(A)", "A"),
        ("D", None),
        ("", None),
        ("\nA", None),
        ("A red dog", None),
        ("the answer is A", None),
    ],
)
def test_letters(said: str, expected: str | None) -> None:
    assert parse(said, ["first_clause", "option_text"], "letter", OPTIONS) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes.", "yes"),
        ('no"', "no"),
        ("TRUE", "yes"),
        ("False, because", "no"),
        ("maybe", None),
        ("yes it is", None),
    ],
)
def test_yes_no(said: str, expected: str | None) -> None:
    assert parse(said, ["first_clause", "true_false"], "yes_no", []) == expected


def test_every_word_of_an_option() -> None:
    options = ["the man runs", "the man runs away", "a dog"]
    assert parse("then the man quickly runs away", ["option_words"], "letter", options) == "B"
    assert parse("the man runs", ["option_words"], "letter", options) == "A"
    assert parse("the dog", ["option_words"], "letter", options) is None


def test_number_words_only_when_they_are_the_whole_answer() -> None:
    assert parse("Nine", ["number_words"], "short", []) == "9"
    assert parse("none", ["number_words"], "short", []) == "0"
    assert parse("two dogs", ["number_words"], "short", []) == "two dogs"
    assert matches("2", "two", ["number_words"], "short")


def test_short_answers_ignore_case_articles_and_punctuation() -> None:
    steps = ["first_clause", "vqa_normalise"]
    assert parse(' A circle."', steps, "short", []) == "circle"
    assert matches(parse("a circle", steps, "short", []), "circle", steps, "short")
    assert matches(parse("two cats", steps, "short", []), "2 cats", steps, "short")
    assert not matches(parse("circles", steps, "short", []), "circle", steps, "short")
    assert not matches(None, "circle", steps, "short")


def test_a_letter_stays_even_if_another_option_reads_like_it() -> None:
    assert parse("A", ["option_text"], "letter", ["B", "A"]) == "A"


@settings(deadline=None)
@given(TEXTS, OPTION_LISTS, st.sampled_from(sorted(STEPS)))
def test_steps_are_idempotent_and_never_raise(text: str, options: list[str], step: str) -> None:
    once = STEPS[step](text, options)
    assert STEPS[step](once, options) == once


@settings(deadline=None)
@given(TEXTS, OPTION_LISTS, st.sampled_from(KINDS), st.lists(st.sampled_from(sorted(STEPS)), max_size=6))
def test_what_is_parsed_is_a_valid_answer(text: str, options: list[str], kind: str, steps: list[str]) -> None:
    found = parse(text, steps, kind, options)  # type: ignore[arg-type]
    if found is not None:
        assert plain(found)
        if kind == "letter":
            assert found in "ABCDEF"[: len(options)]
        if kind == "yes_no":
            assert found in ("yes", "no")


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["first_clause", "vqa_normalise"]))
def test_case_and_punctuation_at_the_end_do_not_matter(text: str, step: str) -> None:
    said = parse(text, ["first_clause", step], "short", [])
    assert parse(f"{text}.", ["first_clause", step], "short", []) == said
