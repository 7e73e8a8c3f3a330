"""How a chat template ends an answer, read from what it writes after one.

A template is asked to write conversations whose answers are known words. What stands behind such a word at the end of
the conversation (the last tail), and between it and the next question (the middle tail), holds the end marker.
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
    """What a template writes after an answer, and how much of it ends the answer.

    Attributes:
        last: the text after the last answer of a conversation.
        middle: the text between an answer and the next question, the header of the user's turn included.
        last_end: how many characters of `last` end the answer; 0 if it writes no end there.
        middle_end: the same of `middle`; 0 if earlier answers have no end of their own.
    """

    last: str
    middle: str
    last_end: int
    middle_end: int

    @property
    def end(self) -> str:
        """The text that ends the last answer, taken from the middle tail where the last one has none; "" for none."""
        return self.last[: self.last_end] or self.middle[: self.middle_end]


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """The ends that a template writes, in the conversations that it was asked for.

    Attributes:
        tails: each distinct pair of tails; empty if the template cannot write the conversations.
        markers: what ends an answer: a token's text, or plain text with the white space before it.
        next_turn: where no end is written at all, the header of the next user turn, by which an answer is over.
    """

    tails: tuple[Tails, ...] = ()
    markers: tuple[str, ...] = ()
    next_turn: str = ""

    @property
    def missing(self) -> bool:
        """Whether the template was seen to write nothing that ends an answer."""
        return any(not one.end for one in self.tails)

    @property
    def missing_between(self) -> bool:
        """Whether it was seen to write no end after an earlier answer."""
        return any(not one.middle_end for one in self.tails)

    def split(self, written: str) -> tuple[str, str, str]:
        """Split what a template writes for the last answer into the answer, its end, and what no one says."""
        found = max((one for one in self.tails if written.endswith(one.last)), key=lambda t: len(t.last), default=None)
        if found is None:  # the line break after the end marker belongs to no one
            answer = written.rstrip("\n")
            return answer, "", written[len(answer) :]
        answer = written[: len(written) - len(found.last)]
        return answer, found.end, found.last[found.last_end :] if found.last_end else ""

    def between(self, following: str) -> int:
        """How many characters end an earlier answer, of the text that follows it; 0 if it has no end."""
        ends = (one.middle[: one.middle_end] for one in self.tails)
        return max((len(end) for end in ends if following.startswith(end)), default=0)


def find_turn_ends(render: Callable[[Messages, bool], str | None], tokens: Iterable[str]) -> TurnEnds:
    """Find how a template ends answers.

    Args:
        render: writes messages, with the header of the answer to come if the second argument says so; None where the
            template refuses them.
        tokens: texts of the tokenizer's added tokens, of which the first after an answer ends it.
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
    """What follows the answer."""
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
    """What both tails begin with, cut at the border of a token or marker, without white space at its end."""
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
    """The tokens, markers, lines and words of a text."""
    parts = re.split(f"({tokens.pattern})", text)
    return [piece for n, part in enumerate(parts) for piece in ([part] if n % 2 else re.findall(_PIECE, part))]


def _first_token(text: str, tokens: re.Pattern[str]) -> int:
    """Where the first of the tokenizer's added tokens in a text ends; 0 if there is none."""
    found = tokens.search(text)
    return found.end() if found else 0
