"""Extraction and scores: the rules by example, and what must hold for any text."""

from __future__ import annotations

import itertools
import re
import string
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmtune.common.errors import UserError
from mmtune.interfaces import Completion, Verdict
from mmtune.verify.answer_verifier import Reference
from mmtune.verify.comparison import plain
from mmtune.verify.contractions import CONTRACTIONS
from mmtune.verify.extraction import KINDS, STEPS, Kind, parse
from mmtune.verify.normalize import vqa_normalise
from mmtune.verify.option_names import LETTERS
from mmtune.verify.registry import VERIFIERS
from mmtune.verify.vqa import VqaVerifier

OPTIONS = ["a red fox", "Two dogs.", "don't know"]
# any text at all: control characters, markup, halves of surrogate pairs
ANY_TEXT = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cs")), max_size=40)
LIKELY = st.sampled_from(
    ["A", " b", "Yes.", "true", "two dogs", 'C"', "none", "\n", "D: x", "(B) x", "1,000.5", "\\frac{1}{2}"]
)
TEXTS = ANY_TEXT | LIKELY
OPTION_LISTS = st.lists(st.text(max_size=12) | st.sampled_from(["A", "B", "yes"]), max_size=6)
STEP_LISTS = st.lists(st.sampled_from(sorted(STEPS)), max_size=6)
ANY_SPEED = settings(deadline=None)


def vqa(answer: str, golds: list[str]) -> float:
    return VqaVerifier().compare(answer, golds).score


def score(said: str, golds: list[str], steps: list[str], verifier: str = "exact") -> float:
    return VERIFIERS[verifier](steps).verify(Completion(said), Reference(tuple(golds))).score


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
        ('"A"', None),  # the protocol cuts at the first quote, so nothing is left
    ],
)
def test_letters(said: str, expected: str | None) -> None:
    assert parse(said, ["first_clause", "option_text"], "letter", OPTIONS) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('B"', "B"),
        ("b. 8:05", "B"),
        ("(A) 8:00 or so", "A"),
        ("C:", "C"),
        ('8:05" is right', "B"),
        ("12.5%", "C"),
        ("A dog", None),
        ("D) 9:00", None),
        ("8:00 or 8:05", None),
    ],
)
def test_letters_of_options_that_hold_punctuation(said: str, expected: str | None) -> None:
    steps = ["first_line", "option_text", "leading_letter"]
    assert parse(said, steps, "letter", ["8:00", "8:05", "12.5%"]) == expected


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
    assert score("2", ["two"], ["number_words"]) == 1


def test_short_answers_ignore_case_articles_and_punctuation() -> None:
    steps = ["first_clause", "vqa_normalise"]
    assert parse(' A circle."', steps, "short", []) == "circle"
    assert score("a circle", ["circle"], steps) == 1
    assert score("two cats", ["2 cats"], steps) == 1
    assert score("circles", ["circle"], steps) == 0
    assert score("", ["circle"], steps) == 0


def test_a_verdict_has_score_and_answer_of_what_follows_the_thought() -> None:
    verifier, wanted = VERIFIERS["exact"](["first_clause", "option_text"]), Reference(("B",), "letter", tuple(OPTIONS))
    assert verifier.verify(Completion("two dogs.", thought="A"), wanted) == Verdict(1.0, "B")
    assert verifier.verify(Completion("A"), wanted) == Verdict(0.0, "A")
    assert verifier.verify(Completion("", thought="B"), wanted) == Verdict(0.0)
    label = VERIFIERS["exact"]([])  # as of a choice that was compared by likelihood
    assert label.verify(Completion("B"), wanted) == Verdict(1.0, "B")
    assert label.verify(Completion(""), wanted) == Verdict(0.0)


def test_details_say_how_an_answer_was_compared() -> None:
    people = Reference(("red",) * 3 + ("pink",) * 7)
    assert VERIFIERS["vqa"]([]).verify(Completion("Red"), people).details == {"agree": 3, "people": 10}
    half = VERIFIERS["math"]([]).verify(Completion(r"\frac{1}{2}"), Reference(("0.5",)))
    assert half == Verdict(1.0, r"\frac{1}{2}", {"value": "1/2"})
    assert VERIFIERS["math"]([]).verify(Completion(""), Reference(("0.5",))) == Verdict(0.0)


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan"), "1", None])
def test_a_verdict_lies_between_0_and_1(score: Any) -> None:
    with pytest.raises(UserError, match="a verdict's is a number from 0 to 1"):
        Verdict(score)


@pytest.mark.parametrize(
    "wanted", [{"answers": "0.5"}, {"answers": ()}, {"answers": (5,)}, {"options": "AB"}, {"kind": "leter"}]
)
def test_a_reference_that_no_answer_could_meet_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wanted))):
        Reference(**{"answers": ("A",), **wanted})
    with pytest.raises(UserError, match="options"):
        Reference(("A",), "letter")


def test_any_of_several_gold_answers_counts() -> None:
    assert score("Sofa.", ["couch", "sofa"], []) == 1
    assert score("chair", ["couch", "sofa"], []) == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # the examples on visualqa.org/evaluation.html
        ("dont", "don't"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        # and one of each rule
        ("The Dog.", "dog"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("ten", "10"),
        ("None", "0"),
        ("white, blue/green!", "white blue green"),
        ("couldnt've", "couldn't've"),
        ("Theyll go", "they'll go"),
        ("well", "well"),
        ("its", "its"),
        ("$5 & 50%", "$5 & 50%"),
        ("a", ""),
    ],
)
def test_vqa_normalisation_is_the_published_one(said: str, expected: str) -> None:
    assert vqa_normalise(said, ()) == expected


def test_contractions_only_gain_apostrophes() -> None:
    for bare, written in CONTRACTIONS.items():
        assert bare.replace("'", "") == written.replace("'", "")
        assert bare.count("'") < written.count("'")
    assert not set(CONTRACTIONS) & set(CONTRACTIONS.values())


def published_vqa_accuracy(answer: str, answers: list[str]) -> float:
    """The formula as it is published: min(matches / 3, 1), averaged over all sets of 9 of the 10 people."""
    sets = list(itertools.combinations(answers, len(answers) - 1))
    return sum(min(some.count(answer) / 3, 1) for some in sets) / len(sets)


@pytest.mark.parametrize("agree", range(11))
def test_vqa_accuracy_is_the_published_formula(agree: int) -> None:
    answers = ["dog"] * agree + ["cat"] * (10 - agree)
    assert vqa("dog", answers) == pytest.approx(published_vqa_accuracy("dog", answers))
    assert vqa("dog", answers) == pytest.approx([0, 0.3, 0.6, 0.9, *[1.0] * 7][agree])
    assert vqa("The DOG!", answers) == vqa("dog", answers)


@given(st.lists(st.sampled_from(["2", "cat", "red"]), min_size=2, max_size=12), st.sampled_from(["2", "cat", "blue"]))
def test_vqa_accuracy_for_any_number_of_people(answers: list[str], answer: str) -> None:
    assert vqa(answer, answers) == pytest.approx(published_vqa_accuracy(answer, answers))


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("0.5", r"$\frac{1}{2}$", 1),
        ("1/2", r"\dfrac{1}{2}", 1),
        ("2 1/2", r"$2\frac{1}{2}$", 1),
        ("21/2", r"$2\frac{1}{2}$", 0),
        ("10404", r"$10,\!404$", 1),
        ("1,000", "1000", 1),
        ("35", "3.5", 0),
        ("-5", "5", 0),
        ("+5.0", "5", 1),
        ("30 °", r"30^{\circ}", 1),
        ("75%", r"$75 \%$", 1),
        (r"2\sqrt{2}", r"$2 \sqrt{2}$", 1),
        (r"\left(1, 2\right)", "(1,2)", 1),
        ("(12)", "(1,2)", 0),
        ("20 π", r"20 \pi", 1),
        ("Jan.", r"\text{Jan}", 1),
        ("1 2", "12", 0),
        ("1  2", "1 2", 1),
        ("1/0", "2/0", 0),
        ("9" * 5000, "9" * 5000, 1),
        ("twelve", "12", 0),
    ],
)
def test_math_answers_are_compared_by_value(said: str, gold: str, expected: int) -> None:
    assert score(said, [gold], ["first_line"], "math") == expected


def test_a_letter_stays_even_if_another_option_reads_like_it() -> None:
    assert parse("A", ["option_text"], "letter", ["B", "A"]) == "A"


@ANY_SPEED
@given(TEXTS, OPTION_LISTS, st.sampled_from(sorted(STEPS)))
def test_steps_are_idempotent_and_never_raise(text: str, options: list[str], step: str) -> None:
    once = STEPS[step](text, options)
    assert STEPS[step](once, options) == once


@ANY_SPEED
@given(TEXTS, OPTION_LISTS, st.sampled_from(KINDS), STEP_LISTS)
def test_what_is_parsed_is_a_valid_answer(text: str, options: list[str], kind: Kind, steps: list[str]) -> None:
    found = parse(text, steps, kind, options)
    if found is not None:
        assert plain(found)
        if kind == "letter":
            assert found in list(LETTERS[: len(options)])
        if kind == "yes_no":
            assert found in ("yes", "no")


@ANY_SPEED
@given(OPTION_LISTS, STEP_LISTS.map(lambda steps: [s for s in steps if s != "vqa_normalise"]))
def test_a_valid_letter_survives_every_step(options: list[str], steps: list[str]) -> None:
    for letter in LETTERS[: len(options)]:
        for said in (letter, letter.lower(), f" {letter} "):
            assert parse(said, steps, "letter", options) == letter


@ANY_SPEED
@given(STEP_LISTS)
def test_yes_and_no_survive_every_step(steps: list[str]) -> None:
    for said in ("yes", "no", "Yes", " NO"):
        assert parse(said, steps, "yes_no", []) == said.strip().lower()


@ANY_SPEED
@given(st.text(string.ascii_letters + " ", min_size=1, max_size=20).map(str.strip).filter(bool), STEP_LISTS)
@example("none", ["number_words"])
def test_a_short_gold_answer_said_word_for_word_is_right(gold: str, steps: list[str]) -> None:
    said = parse(gold, steps, "short", [])
    reworded = vqa_normalise(gold, ()) if "vqa_normalise" in steps else gold
    assert score(gold, [gold], steps) == bool(reworded)
    assert gold == said or set(steps) & {"true_false", "number_words", "vqa_normalise"}


@ANY_SPEED
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=10), st.sampled_from(sorted(VERIFIERS)))
def test_scores_never_raise_and_lie_between_0_and_1(said: str, golds: list[str], rule: str) -> None:
    compare = VERIFIERS[rule]().compare
    assert 0 <= compare(said, golds).score <= 1
    assert compare(said, [said] * 10).score == 1


@ANY_SPEED
@given(TEXTS, st.sampled_from(["first_clause", "vqa_normalise"]))
def test_case_and_punctuation_at_the_end_do_not_matter(text: str, step: str) -> None:
    said = parse(text, ["first_clause", step], "short", [])
    assert parse(f"{text}.", ["first_clause", step], "short", []) == said


@ANY_SPEED
@given(TEXTS)
def test_a_first_line_has_no_line_break_or_quote(text: str) -> None:
    assert not re.search(r'["\n\r]', STEPS["first_line"](text, []))
