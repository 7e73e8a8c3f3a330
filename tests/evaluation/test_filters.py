"""The filters of task files: what must hold for any text of a row."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.evaluation.tasks.filters import (
    FILTERS,
    clean_hellaswag,
    ensure_punctuation,
    letter,
    listed_options,
    looks_like_yes_no,
    option_lines,
    strip_punctuation,
    without_image_marks,
    without_instruction,
    without_options,
)
from mmtune.verify.option_names import LETTERS

PIECES = st.sampled_from(
    ["<image1>", "<image>", "A. ", "B. ", "\n", " ", "Please answer ", "[title]", "[", "]", "?", "x"]
)
TEXTS = st.lists(PIECES | st.text(st.characters(categories=("L", "P", "Z", "Cc", "Cs")), max_size=6), max_size=12).map(
    "".join
)
OF_TEXT = sorted(set(FILTERS) - {"option_lines", "letter"})
ANY_SPEED = settings(deadline=None)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("so\n<image1>that one", "so that one"),
        ("Look:\n<image1>\nWhich?", "Look:\nWhich?"),
        ("<image1>\n\nIn the figure", "In the figure"),
        ("colours. <image12> The colour", "colours. The colour"),
        ("in <image2>.", "in."),
        ("no mark <image of a cat>", "no mark <image of a cat>"),
    ],
)
def test_image_marks(asked: str, expected: str) -> None:
    assert without_image_marks(asked) == expected


@ANY_SPEED
@given(TEXTS)
def test_filters_never_raise(text: str) -> None:
    for name in OF_TEXT:
        FILTERS[name](text)
    looks_like_yes_no(text)


@ANY_SPEED
@given(TEXTS)
def test_doing_it_twice_changes_nothing(text: str) -> None:
    for change in (ensure_punctuation, strip_punctuation, without_image_marks):
        assert change(change(text)) == change(text)


@ANY_SPEED
@given(st.text(max_size=30))
def test_punctuation_is_there_or_gone(text: str) -> None:
    assert ensure_punctuation(text)[-1] in string.punctuation
    assert not set(strip_punctuation(text)) & set(string.punctuation)


WORDS = st.text(string.ascii_letters + " ,'", min_size=1, max_size=20).map(str.strip).filter(bool)


@ANY_SPEED
@given(WORDS, st.lists(WORDS, min_size=2, max_size=6))
def test_options_are_taken_apart_as_they_were_put_together(asked: str, options: list[str]) -> None:
    lines = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False))
    whole = f"{asked}?\n\n{lines}\n\nPlease answer directly with only the letter."
    assert listed_options(whole) == options
    assert without_options(whole) == f"{asked}?"
    assert without_instruction(whole) == f"{asked}?\n\n{lines}"
    assert option_lines(options).count("\n") == len(options) - 1


@given(st.integers(0, 25))
def test_letters_of_numbers_and_of_their_text(index: int) -> None:
    assert letter(index) == letter(str(index)) == letter(float(index)) == LETTERS[index]


@pytest.mark.parametrize("index", [-1, 26, "", "x", True, None, 1.5, float("nan")])
def test_what_is_no_index(index: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        letter(index)  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [" ", "\n", "[", "[ ", "A. ", "<image", "Please answer ", "A. x" + " " * 50])
def test_long_rows_take_no_time(piece: str) -> None:
    text = "A. x\nB. y" + piece * 50_000 + "x"
    begun = time.perf_counter()
    for name in OF_TEXT:
        FILTERS[name](text)
    looks_like_yes_no(text)
    assert time.perf_counter() - begun < 5


def test_hellaswag_is_cleaned_as_the_harness_does(shared_data: Path) -> None:
    """The four steps that are published for the set, on every text of the real rows that has brackets."""
    import re

    file = shared_data / "hub/Rowan/hellaswag/default/validation.parquet"
    if not file.is_file():
        pytest.skip("needs HellaSwag in ../shared/data")
    rows = pq.read_table(file, columns=["ctx_a", "endings"]).to_pylist()
    texts = [text for row in rows for text in (row["ctx_a"], *row["endings"])]
    for text in texts:
        published = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        assert clean_hellaswag(text) == re.sub(" +", " ", published).strip()
