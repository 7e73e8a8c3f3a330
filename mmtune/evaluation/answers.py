"""From what a model said to an answer that can be compared: small pure steps, applied in the task's order."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Literal, get_args

Kind = Literal["letter", "yes_no", "short"]
KINDS: tuple[str, ...] = get_args(Kind)
LETTERS = string.ascii_uppercase
YES_NO = ("yes", "no")

Step = Callable[[str, Sequence[str]], str]
"""A step: (text so far, the options' texts) to text. It never raises."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLAUSE_END = re.compile(r'[.,:"\n\r]')


def plain(text: str) -> str:
    """Lower case, without punctuation, single spaces: how answers are compared."""
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


def first_clause(text: str, options: Sequence[str]) -> str:
    """Cut at the first of `.` `,` `:` `"` or a line break."""
    return _CLAUSE_END.split(text, maxsplit=1)[0].strip()


def option_text(text: str, options: Sequence[str]) -> str:
    """The text of an option becomes its letter. What is a valid letter already stays one."""
    said = plain(text)
    if said and not _valid_letter(said, options):
        for letter, option in zip(LETTERS, options, strict=False):
            if said == plain(option):
                return letter
    return text


def option_words(text: str, options: Sequence[str]) -> str:
    """An option all of whose words were said becomes its letter; of several, the one with most words."""
    said = plain(text)
    if _valid_letter(said, options):
        return text
    words = set(said.split())
    held = [
        (-len(wanted), letter)
        for letter, option in zip(LETTERS, options, strict=False)
        if (wanted := set(plain(option).split())) and wanted <= words
    ]
    return min(held)[1] if held else text


def true_false(text: str, options: Sequence[str]) -> str:
    """`true` becomes yes, `false` no."""
    return {"true": "yes", "false": "no"}.get(plain(text), text)


def number_words(text: str, options: Sequence[str]) -> str:
    """An answer that is one of none, zero, one … nine becomes a digit."""
    return _DIGITS.get(plain(text), text)


def vqa_normalise(text: str, options: Sequence[str]) -> str:
    """As answers about photos are compared: lower case, no punctuation or articles, digits."""
    words = [_DIGITS.get(word, word) for word in plain(text).split() if word not in ("a", "an", "the")]
    return " ".join(words)


STEPS: dict[str, Step] = {
    step.__name__: step for step in (first_clause, option_text, option_words, true_false, number_words, vqa_normalise)
}
# these say the same in other words, so a short gold answer goes through them too
_REWORDING = {"true_false", "number_words", "vqa_normalise"}


def parse(response: str, steps: Sequence[str], kind: Kind, options: Sequence[str]) -> str | None:
    """The answer in a response.

    Args:
        response: the raw text after the primer.
        steps: names of extraction steps, applied in order.
        kind: what counts as an answer: a letter of the options, yes or no, or any words.
        options: the options' texts; needed for letters.

    Returns:
        A capital letter, `yes` or `no`, or text; None where there is no valid answer ("unparsed").
    """
    text = response
    for step in steps:
        text = STEPS[step](text, options)
    said = plain(text)
    if kind == "letter":
        return said.upper() if _valid_letter(said, options) else None
    if kind == "yes_no":
        return said if said in YES_NO else None
    return text.strip() if said else None


def matches(prediction: str | None, target: str, steps: Sequence[str], kind: Kind) -> bool:
    """Whether a parsed answer is the gold answer, ignoring case and punctuation."""
    if prediction is None:
        return False
    if kind == "short":
        for step in steps:
            if step in _REWORDING:
                target = STEPS[step](target, ())
    return plain(prediction) == plain(target)


def _valid_letter(said: str, options: Sequence[str]) -> bool:
    return len(said) == 1 and said.upper() in LETTERS[: len(options)]
