"""Which option an answer names, by its letter or by its text."""

from __future__ import annotations

import string
from collections.abc import Callable, Hashable, Sequence

from mmtune.verify.comparison import folded, plain, value

LETTERS = string.ascii_uppercase

_AROUND = string.whitespace + ".,:;!?\"'`()[]{}<>*_-$\u201c\u201d\u2018\u2019\u00ab\u00bb\uff08\uff09"
# from the exact text to what most texts share
_LEVELS: tuple[Callable[[str], Hashable], ...] = (str, str.strip, folded, plain, value)
_EXACT, _QUOTED = 2, 3  # the first so many: the same characters; the same but for case and typography


def bare_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of an option that a text is, spaces apart; plain A to Z, in either case."""
    said = text.strip()
    return said.upper() if len(said) == 1 and said.isascii() and said.upper() in LETTERS[: len(options)] else None


def letter_said(text: str, options: Sequence[str]) -> str | None:
    """The letter of an option that a text is, quotes, brackets and the like apart."""
    return bare_letter(text.strip(_AROUND), options)


def option_named(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option that a text names.

    In this order: a bare letter; an option's exact text; a letter in quotes, brackets or the like; an option's text but
    for case and typography, but for punctuation that does not change what is said, by value. The first of these that
    fits decides; where it fits several options, none is named.
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
    """The letter of the one option whose text a response is, to its end, its first line break or its first quote.

    The same but for case and typography. None of a bare letter, which says nothing of a text, nor of spaces alone.
    """
    if bare_letter(response, options):
        return None
    for said in (response, response.partition("\n")[0], response.partition('"')[0]):
        if said.strip() and (found := _fitting(said, options, _LEVELS[:_QUOTED])):
            return found[0] if len(found) == 1 else None
    return None


def option_with_most_words(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option all of whose words were said; of several the one with most words, if there is one."""
    words = set(plain(text).split())
    said: dict[int, list[str]] = {}
    for letter, option in zip(LETTERS, options, strict=False):
        wanted = set(plain(option).split())
        if wanted and wanted <= words:
            said.setdefault(len(wanted), []).append(letter)
    longest = said[max(said)] if said else []
    return longest[0] if len(longest) == 1 else None


def _fitting(text: str, options: Sequence[str], levels: Sequence[Callable[[str], Hashable]]) -> list[str]:
    """The letters of the options that are the text at the first level at which any is."""
    for level in levels:
        said = level(text)
        if said in (None, ""):
            continue
        if found := [letter for letter, option in zip(LETTERS, options, strict=False) if level(option) == said]:
            return found
    return []
