"""How much work a regular expression is, in steps of a backtracking matcher: counted, so that no clock is asked.

It tries what Python's own matcher tries, in the same order, without the shortcuts that this one has.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from re import _constants as kinds
from re import _parser as parser
from typing import Any

_MOST = 60_000  # steps; what takes more on a short text grows without end
_MANY = 50  # repeats; more than that is as good as without end
_CHARACTERS = "a1 \n\tA.<>[]{}()'\"\\/,:;-+_%$^|=!?x\u00e9\x00"


class _EndlessError(Exception):
    """More steps than anybody counts."""


class Pattern:
    """A parsed expression."""

    def __init__(self, source: str, flags: int = 0, *, anchored: bool = False) -> None:
        """`anchored` for one that is looked for at the beginning of a text alone."""
        self.anchored = anchored
        tree = parser.parse(source, flags & ~re.UNICODE.value)
        self.tree, self.flags, self.steps = list(tree), tree.state.flags, 0

    def work(self, text: str) -> float:
        """The steps that it takes to find all matches in a text; infinite where they are too many to count."""
        self.steps, start = 0, 0
        try:
            while start <= len(text):
                end = next(self._follow(self.tree, 0, text, start), None)
                if self.anchored:
                    break
                start = max(start + 1, end) if end is not None else start + 1
        except _EndlessError:
            return math.inf
        return self.steps

    def _follow(self, nodes: list[Any], at: int, text: str, place: int) -> Iterator[int]:
        """Where the nodes from `at` on can end, begun at a place of the text."""
        self.steps += 1
        if self.steps > _MOST:
            raise _EndlessError
        if at == len(nodes):
            yield place
            return
        for end in self._one(nodes[at], text, place):
            yield from self._follow(nodes, at + 1, text, end)

    def _one(self, node: Any, text: str, place: int) -> Iterator[int]:
        kind, given = node
        if kind in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN):
            if place < len(text) and self._is(node, text[place]):
                yield place + 1
        elif kind is kinds.BRANCH:
            for branch in given[1]:
                yield from self._follow(list(branch), 0, text, place)
        elif kind is kinds.SUBPATTERN:
            yield from self._follow(list(given[3]), 0, text, place)
        elif kind is kinds.ATOMIC_GROUP:
            yield from list(self._follow(list(given), 0, text, place))[:1]
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            yield from self._repeat(kind, *given, text, place)
        elif kind is kinds.AT:
            if self._stands(given, text, place):
                yield place
        elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
            begin = place if given[0] > 0 else place - given[1].getwidth()[0]
            found = begin >= 0 and next(self._follow(list(given[1]), 0, text, begin), None) is not None
            if found == (kind is kinds.ASSERT):
                yield place
        else:
            raise NotImplementedError(str(kind))

    def _repeat(self, kind: Any, least: int, most: int, body: Any, text: str, place: int) -> Iterator[int]:
        ends, stack = [], [(place, 0)]
        if len(body) == 1 and body[0][0] in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN):
            end = place
            while end < len(text) and end - place < most and self._is(body[0], text[end]):
                end += 1
                self.steps += 1
            ends = list(range(end, place + least - 1, -1))
        else:
            yield from self._nested(kind, least, most, list(body), text, *stack[0])
            return
        if kind is kinds.POSSESSIVE_REPEAT:
            ends = ends[:1]
        for end in reversed(ends) if kind is kinds.MIN_REPEAT else ends:
            self.steps += 1
            yield end

    def _nested(
        self, kind: Any, least: int, most: int, body: list[Any], text: str, place: int, done: int
    ) -> Iterator[int]:
        if kind is kinds.MIN_REPEAT and done >= least:
            yield place
        if done < most:
            for end in self._follow(body, 0, text, place):
                if end > place or done < least:
                    yield from self._nested(kind, least, most, body, text, end, done + 1)
        if kind is not kinds.MIN_REPEAT and done >= least:
            yield place

    def _is(self, node: Any, character: str) -> bool:
        kind, given = node
        if self.flags & re.IGNORECASE.value:
            character = character.lower()
        if kind is kinds.LITERAL:
            return character == chr(given)
        if kind is kinds.NOT_LITERAL:
            return character != chr(given)
        if kind is kinds.ANY:
            return character != "\n" or bool(self.flags & re.DOTALL.value)
        negated = given[0][0] is kinds.NEGATE
        return any(_within(one, character) for one in given) != negated

    def _stands(self, where: Any, text: str, place: int) -> bool:
        lines = bool(self.flags & re.MULTILINE.value)
        word = [0 <= at < len(text) and (text[at].isalnum() or text[at] == "_") for at in (place - 1, place)]
        return {
            kinds.AT_BEGINNING: place == 0 or (lines and text[place - 1] == "\n"),
            kinds.AT_BEGINNING_STRING: place == 0,
            kinds.AT_END: place == len(text) or (text[place] == "\n" and (lines or place + 1 == len(text))),
            kinds.AT_END_STRING: place == len(text),
            kinds.AT_BOUNDARY: word[0] != word[1],
            kinds.AT_NON_BOUNDARY: word[0] == word[1],
        }[where]


def _within(item: Any, character: str) -> bool:
    kind, given = item
    if kind is kinds.LITERAL:
        return character == chr(given)
    if kind is kinds.RANGE:
        return given[0] <= ord(character) <= given[1]
    if kind is kinds.CATEGORY:
        name = str(given).lower()
        found = {"space": character.isspace(), "digit": character.isdigit()}
        found["word"] = character.isalnum() or character == "_"
        return found[name.rpartition("_")[2]] != ("not" in name)
    return False


def samples(pattern: Pattern, nodes: list[Any]) -> str:
    """A text that nodes match, as far as that is easily found."""
    text = ""
    for node in nodes:
        kind, given = node
        if kind in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN):
            known = chr(given) if kind is kinds.LITERAL else _CHARACTERS
            named = "".join(chr(g) for k, g in given if k is kinds.LITERAL) if kind is kinds.IN else ""
            ranges = "".join(chr(g[0]) for k, g in given if k is kinds.RANGE) if kind is kinds.IN else ""
            text += next((c for c in known + named + ranges if pattern._is(node, c)), "")
        elif kind is kinds.BRANCH:
            text += samples(pattern, list(given[1][0]))
        elif kind is kinds.SUBPATTERN:
            text += samples(pattern, list(given[3]))
        elif kind is kinds.ATOMIC_GROUP:
            text += samples(pattern, list(given))
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            text += samples(pattern, list(given[2])) * min(max(1, given[0]), _MANY)
    return text


def windows(pattern: Pattern, nodes: list[Any]) -> Iterator[tuple[str, str]]:
    """Texts that parts of an expression match, each behind what comes before that part."""
    # a run of plain characters is one part
    plain = [kind is kinds.LITERAL for kind, _ in nodes]
    edges = [at for at in range(len(nodes) + 1) if not (0 < at < len(nodes) and plain[at - 1] and plain[at])]
    for number, begin in enumerate(edges[:-1]):
        for end in edges[number + 1 :]:
            yield samples(pattern, nodes[:begin]), samples(pattern, nodes[begin:end])
        kind, given = nodes[begin]
        inner: list[Any] = []
        if kind is kinds.BRANCH:
            inner = [list(one) for one in given[1]]
        elif kind is kinds.SUBPATTERN:
            inner = [list(given[3])]
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            inner = [list(given[2])]
        for body in inner:
            before = samples(pattern, nodes[:begin])
            yield from ((before + first, pump) for first, pump in windows(pattern, body))


def growth(source: str, flags: int = 0, *, anchored: bool = False, size: int = 100) -> tuple[float, str]:
    """How much more work a text of four times the length is, at most: 4 where work grows as the text; and that text."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        return _growth(Pattern(source, flags, anchored=anchored), size)
    finally:
        sys.setrecursionlimit(limit)  # other tests look at what Python gives up on


def _growth(pattern: Pattern, size: int) -> tuple[float, str]:
    worst = (0.0, "")
    for before, pump in dict.fromkeys(windows(pattern, pattern.tree)):
        for after in ("", "\nx", "\x00", " x\n", pump[:1] + "\x00"):
            if pump:
                few, many = (before + pump * (count // len(pump) + 1) + after for count in (size, 4 * size))
                most = pattern.work(many)
                times = math.inf if most == math.inf else most / pattern.work(few)
                worst = max(worst, (times, before + pump + after))
    return worst
