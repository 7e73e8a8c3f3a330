"""What ends a completion, and the text of its tokens as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmtune.interfaces import FinishReason

_CONTEXT = 16  # tokens that further ones are decoded with; more than a character or a cleaned-up space spans
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of sentencepiece that is one byte of a character


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The end of the earliest stop string in the text, or None."""
    ends = [(at, at + len(s)) for s in stop if s and (at := text.find(s)) >= 0]
    return min(ends)[1] if ends else None


def _without_end(text: str, ends: Sequence[str]) -> str:
    """The text without the marker at its end, the longest where several fit."""
    return text.removesuffix(max((end for end in ends if text.endswith(end)), key=len, default=""))


@dataclass(frozen=True, slots=True)
class StopConditions:
    """What ends a completion.

    Attributes:
        max_tokens: the most tokens it may have.
        stop: strings; the text includes the first.
        end_ids: tokens that are not part of it.
        end_texts: texts that are not part of it either, where no token says the same.
        limited_by: why it may have no more tokens.
    """

    max_tokens: int
    stop: Sequence[str]
    end_ids: Sequence[int]
    end_texts: Sequence[str] = ()
    limited_by: FinishReason = "length"

    def within(self, room: int) -> StopConditions:
        """The same where the window has room for so many tokens."""
        return self if room >= self.max_tokens else replace(self, max_tokens=room, limited_by="window")

    def settled(self, text: str) -> str:
        """The text without an end that further tokens may change: part of a character, or of the end marker."""
        text = text.rstrip("\ufffd")
        begun = (n for end in self.end_texts for n in range(1, len(end)) if text.endswith(end[:n]))
        return text[: len(text) - max(begun, default=0)]


class StreamDecoder:
    """Text of tokens as they come; a token of a long text costs what one of a short text does.

    Attributes:
        text: what the tokens say so far, without the marker that ended it.
        tokens: how many there are, that which ended it included.
        finish_reason: why it is over; None before.
    """

    def __init__(self, conditions: StopConditions, tokenizer: Any) -> None:
        """
        Args:
            conditions: what ends it.
            tokenizer: the model's.
        """
        self.text, self.tokens = "", 0
        self.finish_reason: FinishReason | None = None
        self._conditions, self._tokenizer = conditions, tokenizer
        self._head = ""  # what the tokens before `_context` and those in it say
        self._context: list[int] = []  # the last of these, which following tokens are decoded with: spaces, characters
        self._new: list[int] = []  # the tokens after them

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self.finish_reason is not None

    @property
    def settled(self) -> str:
        """The text that further tokens cannot change."""
        return self.text if self.done else self._conditions.settled(self.text)

    def append(self, token: int) -> bool:
        """Take the next token; True if the text is over."""
        self.tokens += 1
        conditions = self._conditions
        ended = token in conditions.end_ids
        # padded vocabularies have rows that are no token: they say nothing
        if not ended and _is_token(self._tokenizer, token):
            self._new.append(token)
        text = self._decoded()
        stopped = first_stop(text, [*conditions.stop, *conditions.end_texts])
        self.text = _without_end(text[:stopped], conditions.end_texts)
        if ended or stopped is not None:
            self.finish_reason = "stop"
        elif self.tokens >= conditions.max_tokens:
            self.finish_reason = conditions.limited_by
        return self.done

    def _decoded(self) -> str:
        """What all tokens say."""
        text = self._following(self._new)
        known, new = self._new[:-_CONTEXT], self._new[-_CONTEXT:]
        # sentencepiece decodes neighbouring bytes together: one that is no character spoils those before it
        if len(known) >= 2 * _CONTEXT and not _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(known[-1])):
            before = self._head, self._context, self._new
            self._head, self._context, self._new = self._following(known), known[-_CONTEXT:], new
            said = self._said(self._context)
            # not so where the context ends within a character, or says nothing but spaces
            if self._following(new) != text or said.endswith("\ufffd") or not said.strip():
                self._head, self._context, self._new = before
        return text

    def _following(self, new: Sequence[int]) -> str:
        """What is said up to these tokens, which follow the context."""
        return self._head + self._said([*self._context, *new])[len(self._said(self._context)) :]

    def _said(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _is_token(tokenizer: Any, token: int) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except IndexError:  # slow tokenizers of sentencepiece
        return False
