"""Normalization of answers before comparison: small pure functions, named in task files as extraction steps."""

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
    """Convert `true` to yes and `false` to no."""
    return {"true": "yes", "false": "no"}.get(plain(text), text)


def number_words(text: str, options: Sequence[str]) -> str:
    """Convert an answer that is one of none, zero, one … nine to a digit."""
    return _DIGITS.get(plain(text), text)


def vqa_normalise(text: str, options: Sequence[str]) -> str:
    """Normalize an answer as VQA does (the list under "Evaluation Code" on visualqa.org/evaluation.html).

    Lower case; periods go unless they are decimal; number words become digits; articles go; contractions get their
    apostrophe; punctuation becomes a space, or nothing for a comma between digits. Apostrophes and colons stay. The
    page does not say which marks are punctuation; here they are those of its authors' script.
    """
    words = _VQA_GONE.sub("", text.lower()).translate(_VQA_SPACES).split()
    return " ".join(_VQA_WORDS.get(word, word) for word in words if word not in ("a", "an", "the"))


def normalize_gold(text: str, steps: Sequence[str]) -> str:
    """Apply those of the extraction steps that normalize to a short gold answer."""
    for step in steps:
        if step in NORMALIZERS:
            text = NORMALIZERS[step](text, ())
    return text


NORMALIZERS = {step.__name__: step for step in (true_false, number_words, vqa_normalise)}
"""The extraction steps that say the same in other words."""
