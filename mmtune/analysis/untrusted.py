"""Text of models and data sets, made safe and legible for terminals and pages. Neither is to be trusted."""

from __future__ import annotations

import functools
import unicodedata

_JOINERS = "\u200c\u200d"  # many scripts and emoji are spelled with these


def visible(text: str) -> str:
    """The text with what would act or hide shown instead; line breaks, tabs and spaces stay.

    Control characters become their pictures (ESC is ␛); other characters without a glyph, among them lone surrogates
    and those that change the writing direction, become their number (⟨U+202E⟩).
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: str, width: int) -> str:
    """The text without line breaks, cut to a width, with control characters visible."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def ending(text: str, width: int) -> str:
    """The text's end without line breaks, cut to a width: where a prompt's question stands."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else "…" + flat[1 - width :]


@functools.cache
def _shown(character: str) -> str:
    if character.isprintable() or character in "\n\t" + _JOINERS or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
