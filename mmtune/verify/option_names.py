"""Matching of answers to options, by letter or by text."""

from __future__ import annotations

import string
from collections.abc import Callable, Hashable, Sequence

from mmtune.verify.comparison import folded, plain, value

LETTERS = string.ascii_uppercase

_AROUND = string.whitespace + ".,:;!?\"'`()[]{}<>*_-$\u201c\u201d\u2018\u2019\u00ab\u00bb\uff08\uff09"
# from exact to loose comparison
_LEVELS: tuple[Callable[[str], Hashable], ...] = (str, str.strip, folded, plain, value)
_EXACT, _QUOTED = 2, 3  # number of levels with the same characters; with the same characters except case and typography


def bare_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the capital letter of an option if the text is that letter (a to z, either case), ignoring spaces."""
    said = text.strip()
    return said.upper() if len(said) == 1 and said.isascii() and said.upper() in LETTERS[: len(options)] else None


def letter_said(text: str, options: Sequence[str]) -> str | None:
    """Return the capital letter of an option if the text is that letter, ignoring quotes, brackets and the like."""
    return bare_letter(text.strip(_AROUND), options)


def option_named(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the one option that a text names; None if it names none or several.

    The order of the rules: a bare letter; an option's exact text; a letter in quotes, brackets or the like; an option's
    text ignoring case and typography; also ignoring punctuation that does not change the meaning; by value. The first
    rule that fits decides; where it fits several options, the result is None.
    """
    if not text.strip():
        return None
    if letter := bare_letter(text, options):
        return letter
    exact, loose = _LEVELS[:_EXACT], _LEVELS[_EXACT:]
    found = _fitting(text, options, exact)
    if not found:
        if letter := letter_said(text, options):
            return letter
        found = _fitting(text, options, loose)
    return found[0] if len(found) == 1 else None


def option_quoted(response: str, options: Sequence[str]) -> str | None:
    """Return the letter of the one option whose text is the response up to its end, first line break or first quote.

    Case and typography are ignored. None for a bare letter, which is no option's text, for spaces alone, and where
    several options have the text.
    """
    if bare_letter(response, options):
        return None
    for said in (response, response.partition("\n")[0], response.partition('"')[0]):
        if said.strip() and (found := _fitting(said, options, _LEVELS[:_QUOTED])):
            return found[0] if len(found) == 1 else None
    return None


def option_with_most_words(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option with the most words, all of which are in the text; None for none or a tie."""
    words = set(plain(text).split())
    said: dict[int, list[str]] = {}
    for letter, option in zip(LETTERS, options, strict=False):
        wanted = set(plain(option).split())
        if wanted and wanted <= words:
            said.setdefault(len(wanted), []).append(letter)
    longest = said[max(said)] if said else []
    return longest[0] if len(longest) == 1 else None


def _fitting(text: str, options: Sequence[str], levels: Sequence[Callable[[str], Hashable]]) -> list[str]:
    """Return the letters of the options that equal the text at the first level where any option does."""
    for level in levels:
        said = level(text)
        if said in (None, ""):
            continue
        if found := [letter for letter, option in zip(LETTERS, options, strict=False) if level(option) == said]:
            return found
    return []
