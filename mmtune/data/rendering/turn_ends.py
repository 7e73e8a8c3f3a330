"""Detection of the text with which a chat template ends an answer.

The template renders test conversations whose answers are known words. The text after such a word at the end of the
conversation (the last tail), and between it and the next question (the middle tail), contains the end marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Messages = list[dict[str, str]]
_QUESTION, _ANSWER, _NEXT, _SYSTEM = "firstquestion", "firstanswer", "secondquestion", "systemprompt"
# what looks like a marker although the tokenizer has no such token, a line break, or plain text
_PIECE = r"<[^<>\s]*>|\[[^\[\]\s]*\]|\n|[^\n<\[]+|."


@dataclass(frozen=True, slots=True)
class Tails:
    """Text that a template writes after an answer, and the part of it that ends the answer.

    Attributes:
        last: the text after the last answer of a conversation.
        middle: the text between an answer and the next question, the header of the user's turn included.
        last_end: number of characters of `last` that end the answer; 0 if it writes no end there.
        middle_end: the same for `middle`; 0 if earlier answers have no end of their own.
    """

    last: str
    middle: str
    last_end: int
    middle_end: int

    @property
    def end(self) -> str:
        """Text that ends the last answer, taken from the middle tail if the last tail has no end; "" for none."""
        return self.last[: self.last_end] or self.middle[: self.middle_end]


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """Ends of answers that a template writes in the test conversations.

    Attributes:
        tails: each distinct pair of tails; empty if the template cannot write the conversations.
        markers: the texts that end an answer: a token's text, or plain text with the white space before it.
        next_turn: where no end is written at all, the header of the next user turn, at which an answer is over.
    """

    tails: tuple[Tails, ...] = ()
    markers: tuple[str, ...] = ()
    next_turn: str = ""

    @property
    def missing(self) -> bool:
        """Whether the template wrote no end of an answer at all in a test conversation."""
        return any(not one.end for one in self.tails)

    @property
    def missing_between(self) -> bool:
        """Whether the template wrote no end after an earlier answer in a test conversation."""
        return any(not one.middle_end for one in self.tails)

    def split(self, written: str) -> tuple[str, str, str]:
        """Split the text of the last answer into the answer, its end, and the text after it that belongs to no turn."""
        found = max((one for one in self.tails if written.endswith(one.last)), key=lambda t: len(t.last), default=None)
        if found is None:  # the line break after the end marker belongs to no turn
            answer = written.rstrip("\n")
            return answer, "", written[len(answer) :]
        answer = written[: len(written) - len(found.last)]
        return answer, found.end, found.last[found.last_end :] if found.last_end else ""

    def between(self, following: str) -> int:
        """Return how many characters of the text after an earlier answer end that answer; 0 if it has no end."""
        ends = (one.middle[: one.middle_end] for one in self.tails)
        return max((len(end) for end in ends if following.startswith(end)), default=0)


def find_turn_ends(render: Callable[[Messages, bool], str | None], tokens: Iterable[str]) -> TurnEnds:
    """Detect how a template ends answers, from test conversations.

    Args:
        render: renders messages, with the header of the next answer if the second argument is True; returns None where
            the template refuses them.
        tokens: texts of the tokenizer's added tokens; the first one after an answer ends it.
    """
    texts = sorted((token for token in tokens if token.strip()), key=len, reverse=True)  # Gemma's holds line breaks
    pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    found: dict[Tails, None] = {}
    for head in ([], [{"role": "system", "content": _SYSTEM}]):
        asked = [*head, {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        last = _after(render(asked, False))
        middle = _after(render([*asked, {"role": "user", "content": _NEXT}], True))
        if last is not None and middle is not None and _NEXT in middle:
            found[_tails(last, middle.partition(_NEXT)[0], pattern)] = None
    markers: dict[str, None] = {}
    for one in found:
        for end in (one.last[: one.last_end], one.middle[: one.middle_end]):
            if end:
                token = pattern.search(end)
                markers[token[0] if token else end] = None
    headers = (one.middle.rstrip() for one in found if not one.end)
    return TurnEnds(tuple(found), tuple(markers), next(headers, ""))


def _after(text: str | None) -> str | None:
    """Return the text after the test answer; None if the answer is not in the text."""
    if text is None or _ANSWER not in text:
        return None
    return text.rpartition(_ANSWER)[2]


def _tails(last: str, middle: str, tokens: re.Pattern[str]) -> Tails:
    shared = _shared(last, middle, tokens)
    if shared:  # both begin with the end, whatever comes after it
        end = _first_token(shared, tokens) or len(shared)
        return Tails(last, middle, end, end)
    last_end = _first_token(last, tokens) or len(last.rstrip())
    return Tails(last, middle, last_end, _first_token(middle, tokens))


def _shared(last: str, middle: str, tokens: re.Pattern[str]) -> str:
    """Return the common prefix of both tails, cut at the border of a token or marker, without trailing white space."""
    whole = last.rstrip()
    if whole and middle.startswith(whole):
        return whole
    shared = ""
    for one, other in zip(_pieces(last, tokens), _pieces(middle, tokens), strict=False):
        if one != other:
            break
        shared += one
    return shared.rstrip()


def _pieces(text: str, tokens: re.Pattern[str]) -> list[str]:
    """Split a text into tokens, markers, line breaks and pieces of plain text."""
    parts = re.split(f"({tokens.pattern})", text)
    return [piece for n, part in enumerate(parts) for piece in ([part] if n % 2 else re.findall(_PIECE, part))]


def _first_token(text: str, tokens: re.Pattern[str]) -> int:
    """Return the end position of the first added token in a text; 0 if there is none."""
    found = tokens.search(text)
    return found.end() if found else 0
