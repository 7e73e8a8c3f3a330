"""Extraction of answers from completions: small pure functions, named in task files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from mmtune.verify.comparison import plain
from mmtune.verify.normalize import NORMALIZERS
from mmtune.verify.option_names import (
    bare_letter,
    letter_said,
    option_named,
    option_quoted,
    option_with_most_words,
)

Kind = Literal["letter", "yes_no", "short"]
KINDS: tuple[str, ...] = get_args(Kind)
YES_NO = ("yes", "no")

Step = Callable[[str, Sequence[str]], str]
"""A step: (text so far, the options' texts) to text. It never raises."""

_CLAUSE_END = re.compile(r'[.,:"\n\r]')
_LINE_END = re.compile(r'["\n\r]')
_LEADING_LETTER = re.compile(r"\s*\(?([A-Za-z])(?:[.:)]|\s*$)")


def first_clause(text: str, options: Sequence[str]) -> str:
    """Cut at the first of `.` `,` `:` `"` or a line break."""
    return _CLAUSE_END.split(text, maxsplit=1)[0].strip()


def first_line(text: str, options: Sequence[str]) -> str:
    """Cut at the first `"` or line break, for answers that may hold other punctuation, such as 8:00 or 3.5."""
    return _LINE_END.split(text, maxsplit=1)[0].strip()


def leading_letter(text: str, options: Sequence[str]) -> str:
    """Reduce a text that begins with an option's letter to it, as in `B: two dogs`, `(B) two dogs` or `b.`."""
    found = _LEADING_LETTER.match(text)
    return (bare_letter(found[1], options) if found else None) or text


def option_text(text: str, options: Sequence[str]) -> str:
    """Replace the text of an option by its letter; see `option_named`. A valid letter stays a letter."""
    return option_named(text, options) or text


def option_words(text: str, options: Sequence[str]) -> str:
    """Replace a text that contains all words of an option by the option's letter.

    Of several such options, the one with the most words counts; if several have the most, the text stays unchanged. A
    valid letter stays a letter.
    """
    return letter_said(text, options) or option_with_most_words(text, options) or text


STEPS: dict[str, Step] = {
    **{step.__name__: step for step in (first_clause, first_line, leading_letter, option_text, option_words)},
    **NORMALIZERS,
}
_BY_TEXT = {"option_text", "option_words"}  # these name an option by its text


def parse(response: str, steps: Sequence[str], kind: Kind, options: Sequence[str]) -> str | None:
    """Extract the answer from a response.

    Args:
        response: the raw text after the response_prefix.
        steps: names of extraction steps, applied in order.
        kind: the kind of answer: a letter of the options, yes or no, or any words.
        options: the options' texts; needed for letters.

    Returns:
        A capital letter, `yes` or `no`, or text; None where there is no valid answer ("unparsed").
    """
    # the text of an option may hold marks at which a step would cut it
    if kind == "letter" and _BY_TEXT.intersection(steps) and (letter := option_quoted(response, options)):
        return letter
    text = response
    for step in steps:
        text = STEPS[step](text, options)
    if kind == "letter":
        return letter_said(text, options)
    said = plain(text)
    if kind == "yes_no":
        return said if said in YES_NO else None
    return text.strip() if said else None
