"""What models say can neither act on a terminal nor hide."""

from __future__ import annotations

import io
import sys
import unicodedata

import pytest
import regex
from evaluations import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from mmtune.common.text import ending, one_line, visible

BLANK = "\u2800\U00016fe4\U0001d159"  # a braille pattern without dots, a filler, a note without a head
HIDDEN = regex.compile(rf"[\p{{Default_Ignorable_Code_Point}}{BLANK}]")
# control and format characters, line separators, halves of characters
ACTING = {"Cc", "Cf", "Zl", "Zp", "Cs"}


@given(st.text(st.characters(exclude_categories=[]), max_size=50))
def test_nothing_that_acts_is_left_and_all_can_be_encoded(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not {c for c in shown if unicodedata.category(c) in ACTING} - set("\n\t\u200c\u200d")


def test_no_character_that_is_ignored_by_default_is_left_alone() -> None:
    ignored = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if ignored.match(c) or c in BLANK]
    assert len(characters) > 4_000
    for character in characters:
        for text in (character, f"a{character}b", f"a{character}", f"5{character}6", f" {character * 3}\n"):
            shown = visible(text)
            assert character not in shown
            assert f"⟨U+{ord(character):04X}⟩" in shown


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]).filter(lambda c: not HIDDEN.match(c))))
def test_ordinary_text_of_any_script_is_left_alone(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    "text",
    ["👩\u200d🔬", "👩🏽\u200d🚀", "❤\ufe0f\u200d🔥", "🏳\ufe0f\u200d🌈", "☺\ufe0f ☺\ufe0e",
     "1\ufe0f\u20e3#\ufe0f\u20e3", "🏴" + "".join(map(chr, (0xE0067, 0xE0062, 0xE0073, 0xE0063, 0xE0074, 0xE007F))),
     "می\u200cخواهم", "क्\u200dष", "ක්\u200dෂ", "ന്\u200d", "👨\u200d👩\u200d👧\u200d👦", "▶\ufe0f",
     "〰\ufe0f", "©\ufe0f ™\ufe0f"],
)  # fmt: skip
def test_emoji_and_scripts_that_are_spelled_with_joiners_are_left_alone(text: str) -> None:
    assert visible(text) == text
    pieces, shown = list(text), ""
    for before, piece in zip(["", *pieces], pieces, strict=False):  # as a model says them
        if piece != "\ufe0f" or "\u20e3" not in text:  # of a keycap, what follows counts
            shown += visible(piece, before)
    assert "⟨" not in shown or "🏴" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u200d\u200cb", "a⟨U+200D⟩⟨U+200C⟩b"),
        ("😀\ufe0f\ufe0e\ufe0f", "😀\ufe0f⟨U+FE0E⟩⟨U+FE0F⟩"),
        ("😀\ufe00", "😀⟨U+FE00⟩"),
        ("葛\U000e0100", "葛⟨U+E0100⟩"),
        ("🏴\U000e0061\U000e007f", "🏴⟨U+E0061⟩⟨U+E007F⟩"),
        ("م\u200c\u200c\u200dم", "م⟨U+200C⟩⟨U+200C⟩⟨U+200D⟩م"),
    ],
)
def test_what_could_carry_a_hidden_text_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_acts_is_named() -> None:
    assert visible("a\x1b[0m\x00\r\x7f\x9b\u202e\ud800\u2028z") == "a␛[0m␀␍␡⟨U+009B⟩⟨U+202E⟩⟨U+D800⟩⟨U+2028⟩z"
    assert visible("two\n\tlines 👩\u200d🔬") == "two\n\tlines 👩\u200d🔬"


def test_cutting() -> None:
    assert one_line("a\nb  c", 10) == "a b c"
    assert one_line("abcdef", 4) == "abc…"
    assert ending("abc\ndef", 4) == "…def"
    assert ending("abc\ndef", 7) == "abc def"


def test_rich_prints_it_as_it_is() -> None:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="truecolor", width=200).print(Text(visible(HOSTILE)))
    written = stream.getvalue()
    assert "\x1b" not in written
    assert "[bold]x[/]" in written
