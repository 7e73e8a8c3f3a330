"""When two texts are the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.interfaces import Completion, Verdict
from mmtune.verify.answer_verifier import Reference
from mmtune.verify.comparison import as_typed, plain, same_answer, term, value
from mmtune.verify.exact import ExactVerifier
from mmtune.verify.extraction import parse

SAME = [
    ("Yes", "\u201cYes\u201d"),
    ("don't know", "Don\u2019t know!"),
    ("-5", "\u22125"),
    ("-5", "\u20105"),
    ("-5", "\u20135."),
    ("3", "3.0"),
    ("1000", "1,000"),
    ("1,000,000.5", "1000000.50"),
    ("1000", "1e3"),
    ("0.0015", "1.5E-3"),
    ("-1000%", "-1e+3 %"),
    ("\u00bd", "1/2"),
    ("\u00bd", "0.5"),
    ("2\u00bd", "2.5"),
    ("\u2153", "1/3"),
    ("50%", "50 %"),
    ("50%", "50.0 %"),
    ("m\u00b2", "m^2"),
    ("10\u207b\u00b9\u00b2", "10^{-12}"),
    ("CO\u2082", "co2"),
    ("\uff11\uff10", "10"),
    ("**Yes**", "yes"),
    ("`x`", "x"),
    ("-", "\u2212"),
    ("t-shirt", "T-Shirt"),
    ("caf\u00e9", "cafe\u0301"),
]
DIFFERENT = [
    ("5", "-5"),
    ("12", "1/2"),
    ("10", "10%"),
    ("50%", "0.5"),
    ("x>5", "x<5"),
    ("<", ">"),
    ("C", "C++"),
    ("C", "C#"),
    ("35", "3.5"),
    ("800", "8:00"),
    ("12", "1,2"),
    ("12", "1-2"),
    ("x", "-x"),
    ("23", "2*3"),
    ("x2", "x\u00b2"),
    ("+", "-"),
    ("st", "\ufb06"),
    ("1000", "1,00"),
    ("3", "e3"),
    ("2", "2e"),
    ("1e3", "1e4"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_answer(one: str, other: str) -> None:
    assert same_answer(one, other)
    assert same_answer(other, one)
    assert ExactVerifier().verify(Completion(one), Reference((other,))) == Verdict(1.0, one.strip())


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_answer(one: str, other: str) -> None:
    assert not same_answer(one, other)
    assert not same_answer(other, one)


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("\u22125", "-5"),
        ("\u00bd", r"\frac{1}{2}"),
        ("\u00bd", r"\frac12"),
        ("2\u00bd", r"$2\frac{1}{2}$"),
        (r"\boxed{5}", "5"),
        (r"$\boxed{\frac{1}{2}}$.", "0.5"),
        (r"\boxed{x^{2}}", "x\u00b2"),
        ("x^{10}", "x\u00b9\u2070"),
        ("\u201c7\u201d", "7"),
        ("3.0", "3"),
        ("\u22121/2", "-0.5"),
        ("1,000", "1000"),
    ],
)
def test_mathematics_is_compared_by_value(said: str, gold: str) -> None:
    assert term(said) == term(gold)


@pytest.mark.parametrize(("said", "gold"), [("5", "-5"), ("12", "1/2"), ("x^2", "x2"), (r"\boxed{4}", "5")])
def test_mathematics_of_another_value(said: str, gold: str) -> None:
    assert term(said) != term(gold)


def test_yes_in_curly_quotes_and_marks_that_say_nothing() -> None:
    assert parse("\u201cYes\u201d", ["first_clause", "true_false"], "yes_no", []) == "yes"
    assert parse("\u201ctrue.\u201d", ["true_false"], "yes_no", []) == "yes"
    assert [parse(said, [], "short", []) for said in (".", '"', "()", "?", "<")] == [None, None, None, "?", "<"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_itself_and_nothing_is_raised(text: str) -> None:
    assert same_answer(text, text)
    assert same_answer(f" {text}\n", text)
    assert as_typed(as_typed(text)) == as_typed(text)
    assert plain(text) == plain(text.lower() if text.lower().upper() == text.upper() else text)


@given(st.integers(-(10**9), 10**9), st.integers(0, 3))
def test_a_number_in_any_spelling_has_its_value(number: int, zeros: int) -> None:
    for written in (f"{number}", f"{number:,}", f"{number}.{'0' * (zeros + 1)}", f" {number}. ", f"{number}/1"):
        assert value(written) == (number, ""), written
