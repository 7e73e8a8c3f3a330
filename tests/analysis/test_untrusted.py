"""What models say can neither act on a terminal nor hide."""

from __future__ import annotations

import io
import unicodedata

from evaluations import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from mmtune.analysis.untrusted import ending, one_line, visible

# control and format characters, line separators, halves of characters
ACTING = {"Cc", "Cf", "Zl", "Zp", "Cs"}


@given(st.text(st.characters(exclude_categories=[]), max_size=50))
def test_nothing_that_acts_is_left_and_all_can_be_encoded(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not {c for c in shown if unicodedata.category(c) in ACTING} - set("\n\t\u200c\u200d")


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_of_any_script_is_left_alone(text: str) -> None:
    assert visible(text) == text


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
