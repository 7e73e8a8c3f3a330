"""Conversion of untrusted text of models and datasets to safe, readable text for terminals and pages."""

from __future__ import annotations

import functools
import re
import unicodedata

# printable by Unicode's tables, but invisible: default-ignorable code points, and blank letters
_HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U00016fe4\U0001d159\U000e0000-\U000e0fff]"
)
# Left as they are, where they shape what stands before them and little can be hidden: one joiner after a letter or
# mark of a script that is spelled with joiners, or after an emoji; one selector of the text or emoji form after a
# symbol or a keycap's sign; the three flags that are spelled with tags.
_SHAPING = re.compile(
    "(?<=[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17b3\u17b6-\u17ff\u1800-\u180a\u1810-\u18af\ua840-\ua87f"
    "\u2190-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d](?![\u200c\u200d])"
    "|(?<=[©®‼⁉™ℹ\u2190-\u27bf\u2900-\u297f\u2b00-\u2bff〰〽㊗㊙\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    "|(?<=\U0001f3f4)(?:\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074"
    "|\U000e0077\U000e006c\U000e0073)\U000e007f)"
)


def visible(text: str, before: str = "") -> str:
    """Replace control characters and invisible characters by visible ones; keep line breaks, tabs and spaces.

    Control characters become their pictures (ESC is ␛); other characters without a glyph, among them lone surrogates,
    those that change the writing direction, and letters that are blank, become their number (⟨U+202E⟩). Joiners and
    selectors stay where they shape an emoji or a script's letters.

    Args:
        text: the text to show.
        before: the text shown just before it; the first character of `text` may combine with its last one.
    """
    if text.isprintable() and not _HIDDEN.search(text):
        return text
    whole, shown = before[-1:] + text, []
    at = len(before[-1:])
    for shaping in _SHAPING.finditer(whole, at):
        shown += [*map(_shown, whole[at : shaping.start()]), shaping[0]]
        at = shaping.end()
    return "".join([*shown, *map(_shown, whole[at:])])


def one_line(text: str, width: int) -> str:
    """Return the text as one line, cut to a width, with control characters visible."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def ending(text: str, width: int) -> str:
    """Return the end of the text as one line, cut to a width; a prompt's question is at its end."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else "…" + flat[1 - width :]


@functools.cache
def _shown(character: str) -> str:
    if _HIDDEN.match(character) is None and (
        character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"
    ):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
