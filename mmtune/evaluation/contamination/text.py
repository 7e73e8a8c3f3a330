"""Which texts of an evaluation stand in a training text, word for word.

The convention is that of GPT-3 (Brown et al., 2020, arXiv 2005.14165, appendix C): texts without case and punctuation
overlap if they have 13 words in a row in common, and texts of fewer than 8 words are not compared.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NGRAM = 13
SHORTEST = 8
# an n-gram in more sources of one task than this is no evidence; GPT-3 ignores those in more than 10 documents
COMMON = 10
# "Which is not true according to the passage?" asks the same of any passage. A question (and options, and a text that
# is compared as a whole) must hold two words that few others of its task hold: this share, or so many if that is more.
TELLING_WORDS = 2
RARE_SHARE, RARE_ROWS = 0.02, 3

TextKind = Literal["text", "question"]

_APOSTROPHES = dict.fromkeys(map(ord, "'’‘ʼ"))
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese put no spaces: every sign counts as a word
_LABEL = re.compile(r"^[^\S\n]*[(\[]?[A-Za-z0-9][)\].:][^\S\n]+", re.MULTILINE)  # A: (B) c. 1)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# of the hash of n words: sum(word[i] * weight[i]) modulo 2^64
_WEIGHTS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(NGRAM)], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class RowText:
    """The text of one row of an evaluation.

    Attributes:
        whole: all that the row says: passage, question, options.
        question: the question alone.
        options: the options, in order; empty where there are none.
        source: what the row is about (its photos, else its passage). Words that rows about many things have in common
            are the set's way of asking, and prove nothing; those that all rows about one passage share do.
    """

    whole: str
    question: str
    options: str
    source: Hashable


@dataclass(frozen=True, slots=True)
class Overlap:
    """Words that a training text shares with a row of an evaluation.

    Attributes:
        row: the row's place in the index.
        kind: `text`, or `question` if the question stands there whole.
        words: the longest run of words in common, normalised.
    """

    row: int
    kind: TextKind
    words: str


def normalise(text: str) -> list[str]:
    """The words of a text: runs of letters and digits in lower case, without apostrophes.

    Letters and numbers that begin a line (`A:`, `(B)`, `1.`) are left out, for the same options may go by others.
    """
    plain = unicodedata.normalize("NFKC", _LABEL.sub("", text))
    return _WORD.findall(plain.casefold().translate(_APOSTROPHES))


class TextIndex:
    """Finds the evaluation rows whose words stand in a text.

    Args:
        tasks: the rows of each task. They are numbered through; what is common is judged within a task.

    Attributes:
        comparable: the rows with enough words of their own; the others are never found.
    """

    def __init__(self, tasks: Iterable[Sequence[RowText]]) -> None:
        self._words: dict[str, int] = {}
        self._wholes: list[str] = []
        self._phrases: list[tuple[int, TextKind, str]] = []
        ngrams: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        for rows in tasks:
            first = len(self._wholes)
            wholes = [normalise(row.whole) for row in rows]
            self._wholes += map(" ".join, wholes)
            questions = [" ".join(normalise(row.question)) for row in rows]
            self._add_phrases("question", questions, rows, first)
            # an instruction often stands between question and options, which together would have 13 words
            self._add_phrases("text", [" ".join(normalise(row.options)) for row in rows], rows, first)
            short = [" ".join(words) if len(words) < NGRAM else "" for words in wholes]
            self._add_phrases("text", [s if s != q else "" for s, q in zip(short, questions, strict=True)], rows, first)
            ngrams.append(self._distinctive(rows, wholes, first))
        self._ngrams = _Postings(
            np.concatenate([hashes for hashes, _ in ngrams] or [np.empty(0, np.uint64)]),
            np.concatenate([entries for _, entries in ngrams] or [np.empty(0, np.int64)]),
        )
        told = np.array([row for row, _, _ in self._phrases], dtype=np.int64)
        self.comparable = frozenset(np.concatenate([told, *(entries for _, entries in ngrams)]).tolist())
        starts = [self._hashes(phrase.split()[:SHORTEST], SHORTEST)[0] for _, _, phrase in self._phrases]
        self._starts = _Postings(np.array(starts, dtype=np.uint64), np.arange(len(starts)))

    def find(self, text: str) -> list[Overlap]:
        """The overlaps of a training text, at most one of a kind for each row."""
        words = normalise(text)
        positions: dict[int, list[int]] = defaultdict(list)
        for position, row in self._ngrams.find(self._hashes(words, NGRAM)):
            positions[row].append(position)
        found: dict[tuple[int, TextKind], str] = {}
        for row, places in positions.items():
            found[row, "text"] = self._longest(words, places, row)
        joined = ""
        for _, number in self._starts.find(self._hashes(words, SHORTEST)):
            joined = joined or f" {' '.join(words)} "
            row, kind, phrase = self._phrases[number]
            if f" {phrase} " in joined:
                found[row, kind] = max(found.get((row, kind), ""), phrase, key=len)
        return [Overlap(row, kind, shared) for (row, kind), shared in found.items() if shared]

    def _add_phrases(self, kind: TextKind, phrases: Sequence[str], rows: Sequence[RowText], first: int) -> None:
        """Note what must stand in a training text as a whole, unless it would fit other rows as well."""
        told_of = defaultdict(set)
        for row, phrase in zip(rows, phrases, strict=True):
            told_of[phrase].add(row.source)
        held_by = Counter(word for phrase in phrases for word in set(phrase.split()))
        rare = max(RARE_ROWS, RARE_SHARE * len(rows))
        for number, phrase in enumerate(phrases, first):
            words = phrase.split()
            telling = sum(held_by[word] <= rare for word in set(words)) >= TELLING_WORDS
            if telling and len(told_of[phrase]) == 1 and len(words) >= SHORTEST:
                self._phrases.append((number, kind, phrase))
            self._learn(words)

    def _distinctive(
        self, rows: Sequence[RowText], wholes: Sequence[list[str]], first: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The hashes of a task's n-grams but for the common ones, and the row of each."""
        for words in wholes:
            self._learn(words)
        hashes = [np.unique(self._hashes(words, NGRAM)) for words in wholes]
        lengths = [len(found) for found in hashes]
        sources = {source: number for number, source in enumerate(dict.fromkeys(row.source for row in rows))}
        together = np.concatenate([*hashes, np.empty(0, np.uint64)])
        about = np.repeat(np.array([sources[row.source] for row in rows], dtype=np.int64), lengths)
        distinct, which = np.unique(together, return_inverse=True)
        pairs = np.unique(which * len(sources) + about)
        spread = np.bincount(pairs // max(len(sources), 1), minlength=len(distinct))
        kept = spread[which] <= COMMON
        return together[kept], np.repeat(np.arange(first, first + len(rows)), lengths)[kept]

    def _learn(self, words: Iterable[str]) -> None:
        for word in words:
            if word not in self._words:
                self._words[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())

    def _hashes(self, words: Sequence[str], length: int) -> NDArray[np.uint64]:
        """The hash of every run of so many words; one with a word that no evaluation row has equals none of theirs."""
        if len(words) < length:
            return np.empty(0, np.uint64)
        numbers = np.fromiter((self._words.get(word, 0) for word in words), np.uint64, len(words))
        hashes: NDArray[np.uint64] = np.lib.stride_tricks.sliding_window_view(numbers, length) @ _WEIGHTS[:length]
        return hashes

    def _longest(self, words: Sequence[str], positions: Sequence[int], row: int) -> str:
        """The longest run of words that really stands in the row, given where its n-grams' hashes begin."""
        whole = f" {self._wholes[row]} "
        found = ""
        start = end = -1
        for position in positions:
            if position != end - NGRAM + 1:
                start = position
            span = " ".join(words[start : position + NGRAM])
            if f" {span} " not in whole:  # neighbours in the training text, but not in the row; or equal by hash alone
                start, span = position, " ".join(words[position : position + NGRAM])
            end = position + NGRAM
            if len(span) > len(found) and f" {span} " in whole:
                found = span
        return found


class _Postings:
    """Numbers filed under 64-bit keys."""

    def __init__(self, keys: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]

    def find(self, keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """(place among the keys given, number filed) of all that is filed under them, by place."""
        first = np.searchsorted(self._keys, keys, "left")
        last = np.searchsorted(self._keys, keys, "right")
        for place in np.flatnonzero(last > first):
            for number in self._numbers[first[place] : last[place]]:
                yield int(place), int(number)
