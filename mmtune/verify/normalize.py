"""Texts in the words that answers are compared in: small pure functions, named in task files as extraction steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmtune.verify.comparison import plain
from mmtune.verify.contractions import CONTRACTIONS

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}

# VQA: all periods but decimal ones go, commas inside numbers too, and these marks become spaces
_VQA_GONE = re.compile(r"\.(?!\d)|(?<=\d),(?=\d)")
_VQA_SPACES = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))
_VQA_WORDS = {**_DIGITS, "ten": "10", **CONTRACTIONS}


def true_false(text: str, options: Sequence[str]) -> str:
    """`true` becomes yes, `false` no."""
    return {"true": "yes", "false": "no"}.get(plain(text), text)


def number_words(text: str, options: Sequence[str]) -> str:
    """An answer that is one of none, zero, one … nine becomes a digit."""
    return _DIGITS.get(plain(text), text)


def vqa_normalise(text: str, options: Sequence[str]) -> str:
    """As answers about photos are compared (the list under "Evaluation Code" on visualqa.org/evaluation.html).

    Lower case; periods go unless they are decimal; number words become digits; articles go; contractions get their
    apostrophe; punctuation becomes a space, or nothing for a comma between digits. Apostrophes and colons stay. Which
    marks are punctuation the page leaves open: here those of its authors' script.
    """
    words = _VQA_GONE.sub("", text.lower()).translate(_VQA_SPACES).split()
    return " ".join(_VQA_WORDS.get(word, word) for word in words if word not in ("a", "an", "the"))


def normalize_gold(text: str, steps: Sequence[str]) -> str:
    """A short gold answer in the words of the answers that went through these extraction steps."""
    for step in steps:
        if step in NORMALIZERS:
            text = NORMALIZERS[step](text, ())
    return text


NORMALIZERS = {step.__name__: step for step in (true_false, number_words, vqa_normalise)}
"""The extraction steps that say the same in other words."""
