"""Comparison of answers: exactly, ignoring case and typography, ignoring punctuation, or by value."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_FRACTIONS = re.compile("(?P<after>(?<=[0-9]))?[\u00bc-\u00be\u2150-\u215e\u2189](?P<before>(?=[0-9]))?")
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207d\u207e\u207f"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = str.maketrans({code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2080, 0x208F)})
_AS_TYPED = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2044\u2215", "/"),
        # full width: digits and marks, not letters
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF21) if code != 0xFF0D},
    }
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
_BLANK_MARKS = " \t\r\n.,:;\"'()[]{}`"  # an answer of these alone is empty
# ASCII punctuation except < > = + ^ |, where it does not change the meaning
_NOISE = re.compile(
    r"""[!"$&'();?@\[\\\]_`{}~]
    | \.(?!\d)                                # 3.5
    | (?<!\d),|,(?!\d) | (?<!\d):|:(?!\d)     # (1,2), 8:00
    | (?<!\w)/|/(?!\w) | (?<!\w)\*|\*(?!\w)   # 1/2, km/h, 2*3
    | (?<!\d)%                                # 10%
    | (?<![a-z])\#                            # c#
    | -(?!\.?\d)(?!(?<!\w-)[^\W\d_](?!\w))    # -5, 1-2, -x
    """,
    re.VERBOSE | re.ASCII,
)

# LaTeX, from the inside out: (pattern, plain text)
_LATEX = tuple(
    (re.compile(pattern), plainer)
    for pattern, plainer in (
        (r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}", r"\1"),
        (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2 "),
        (r"\\[dt]?frac ?(\d)(\d)", r" \1/\2 "),
        (r"\\(?:left|right)(?![a-z])|\\[!,;: ()\[\]$]|[$°]|\\?%|\^\{?\\circ\}?", ""),
        (r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))", ""),  # 10,404
        (r"\s+", " "),
        (r"(?<=\d) (?=\d+/\d)", "+"),  # 2 1/2
        (r"(?<!\d) | (?!\d)", ""),  # 1 2 is not 12
        (r"\{(\w)\}", r"\1"),
        (r"\\pi(?![a-z])", "π"),
    )
)
_BOXED = re.compile(r"[\s$]*\\f?boxed\s*\{(.*)\}[\s$]*(?:\.\s*)?", re.DOTALL)
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<decimal>(?:\d{1,50}(?:\.\d{1,50})?|\.\d{1,50})(?:e[+-]?\d{1,3})?)"
    r"|(?:(?P<whole>\d{1,50})[+ ])?(?P<above>\d{1,50})/(?P<below>0*[1-9]\d{0,50}))",
    re.ASCII,
)


def as_typed(text: str) -> str:
    """Replace typographic characters by those of a keyboard.

    Curly quotes, minus signs and dashes, full-width digits and marks, fractions of one character (½ is 1/2),
    superscript digits (x² is x^2) and subscript digits. Letters stay as they are, ligatures too.
    """
    text = _FRACTIONS.sub(_fraction, text.translate(_AS_TYPED))
    return _RAISED.sub(_raised, text).translate(_LOWERED)


def folded(text: str) -> str:
    """Return the text in lower case, with keyboard characters (`as_typed`), accents composed (NFC), single spaces."""
    return " ".join(unicodedata.normalize("NFC", as_typed(text).lower()).split())


def plain(text: str) -> str:
    """Return the text as `folded` does, without the punctuation that does not change its meaning.

    Signs, decimal points, fractions, per cent and comparisons stay: -5 is not 5, 1/2 not 12, 10% not 10, C# not C.
    A text of punctuation alone keeps it, except quotes, brackets, periods, commas, colons and semicolons at its ends.
    """
    text = folded(text)
    grouped = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    kept = " ".join(_NOISE.sub("", re.sub(r"(?<=\d) (?=%)", "", grouped)).split())
    return kept or text.strip(_BLANK_MARKS)


def value(text: str) -> tuple[Fraction, str] | None:
    """Return the number that a text is, and its unit (`%` or empty); None for any other text."""
    number = plain(text)
    unit = "%" if number.endswith("%") else ""
    found = _NUMBER.fullmatch(number.removesuffix("%"))
    return None if found is None else (_fraction_of(found), unit)


def same_answer(one: str, other: str) -> bool:
    """Return whether two texts are the same answer, ignoring case and punctuation that does not change the meaning.

    Whole numbers, decimals and fractions are compared by value: 3.0 is 3, 1,000 is 1000, ½ is 0.5.
    """
    if one.strip() == other.strip() or plain(one) == plain(other):
        return True
    number = value(one)
    return number is not None and number == value(other)


def term(text: str) -> Fraction | str:
    """Return the number that a mathematical text is, or else the text without its layout."""
    boxed = _BOXED.fullmatch(text)
    text = as_typed(boxed[1] if boxed else text).strip("\"' \t\r\n")
    for pattern, plainer in _LATEX:
        text = pattern.sub(plainer, text)
    text = text.lower().rstrip(".")
    number = _NUMBER.fullmatch(text)
    return text if number is None else _fraction_of(number)


def _fraction_of(number: re.Match[str]) -> Fraction:
    if number["decimal"]:
        size = Fraction(number["decimal"])
    else:
        size = int(number["whole"] or 0) + Fraction(int(number["above"]), int(number["below"]))
    return -size if number["sign"] == "-" else size


def _fraction(found: re.Match[str]) -> str:
    written = unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/")
    # 2½ is 2 1/2
    return f"{'' if found['after'] is None else ' '}{written}{'' if found['before'] is None else ' '}"


def _raised(found: re.Match[str]) -> str:
    digits = unicodedata.normalize("NFKC", found[0]).replace("\u2212", "-")
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"
