"""Search for word-for-word overlap between evaluation texts and training texts.

The convention is that of GPT-3 (Brown et al., 2020, arXiv 2005.14165, appendix C): texts without case and punctuation
overlap if they share 13 consecutive words, and texts of fewer than 8 words are not compared.
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
# an n-gram with more distinct sources (`RowText.source`) in one task is no evidence; GPT-3 ignores n-grams in more than
# 10 documents
COMMON = 10
# "Which is not true according to the passage?" can refer to any passage. Therefore a question (and options, and a text
# that is compared as a whole) must contain two rare words. A word is rare if it occurs in at most RARE_SHARE of the
# task's rows, or in at most RARE_ROWS rows if that is more.
TELLING_WORDS = 2
RARE_SHARE, RARE_ROWS = 0.02, 3

TextKind = Literal["text", "question"]

_APOSTROPHES = dict.fromkeys(map(ord, "'’‘ʼ"))
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese have no spaces: each character counts as a word
_LABEL = re.compile(r"^[^\S\n]*[(\[]?[A-Za-z0-9][)\].:][^\S\n]+", re.MULTILINE)  # A: (B) c. 1)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# the hash of n words is sum(word[i] * weight[i]) modulo 2^64
_WEIGHTS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(NGRAM)], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class RowText:
    """Text of one evaluation row.

    Attributes:
        whole: all text of the row: passage, question, options.
        question: the question alone.
        options: the options, in order; empty where there are none.
        source: subject of the row: its images, or else its longest text (the passage). N-grams that occur with many
            sources are the set's standard wording and no evidence; those shared by all rows on one source are evidence.
    """

    whole: str
    question: str
    options: str
    source: Hashable


@dataclass(frozen=True, slots=True)
class Overlap:
    """Words that a training text shares with an evaluation row.

    Attributes:
        row: position of the row in the index.
        kind: `text`, or `question` if the training text contains the whole question.
        words: longest run of words in common, normalized.
    """

    row: int
    kind: TextKind
    words: str


def normalise(text: str) -> list[str]:
    """Split a text into words: runs of letters and digits, case-folded, without apostrophes.

    Each Chinese or Japanese character is a word. Single letters and digits that label a line (`A:`, `(B)`, `1.`) are
    removed, since another set may label the same options differently.
    """
    plain = unicodedata.normalize("NFKC", _LABEL.sub("", text))
    return _WORD.findall(plain.casefold().translate(_APOSTROPHES))


class TextIndex:
    """Index of evaluation rows, to search for those that overlap with a text.

    Args:
        tasks: rows of each task. Rows are numbered consecutively over all tasks; whether words are common is decided
            within each task.

    Attributes:
        comparable: numbers of the rows with enough distinctive words; the other rows are never found.
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
            # a training text often has an instruction between question and options, which breaks n-grams across both
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
        """Return the overlaps of a training text with the rows, at most one of each kind per row."""
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
        """Add phrases that are compared as a whole: distinctive, of at least 8 words, and of a single source.

        Args:
            kind: kind of the overlaps with these phrases.
            phrases: one normalized text per row; empty for none.
            rows: rows of one task.
            first: number of the first row.
        """
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
        """Return the hashes of a task's n-grams, without the common ones, and the row of each."""
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
        """Return the hash of every run of `length` words.

        Words of no evaluation row count as 0, so that a run with one of them equals no row's run, but for collisions.
        """
        if len(words) < length:
            return np.empty(0, np.uint64)
        numbers = np.fromiter((self._words.get(word, 0) for word in words), np.uint64, len(words))
        hashes: NDArray[np.uint64] = np.lib.stride_tricks.sliding_window_view(numbers, length) @ _WEIGHTS[:length]
        return hashes

    def _longest(self, words: Sequence[str], positions: Sequence[int], row: int) -> str:
        """Return the longest run of words that the row contains; "" where only hashes were equal.

        Args:
            words: words of the training text.
            positions: positions in `words` of the n-grams whose hash the row has, in ascending order.
            row: number of the row.
        """
        whole = f" {self._wholes[row]} "
        found = ""
        start = end = -1
        for position in positions:
            if position != end - NGRAM + 1:
                start = position
            span = " ".join(words[start : position + NGRAM])
            if f" {span} " not in whole:  # adjacent in the training text, but not in the row; or equal only in hash
                start, span = position, " ".join(words[position : position + NGRAM])
            end = position + NGRAM
            if len(span) > len(found) and f" {span} " in whole:
                found = span
        return found


class _Postings:
    """Multimap from 64-bit keys to numbers, as sorted arrays."""

    def __init__(self, keys: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]

    def find(self, keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Yield (position in `keys`, number) for every number of these keys, by position."""
        first = np.searchsorted(self._keys, keys, "left")
        last = np.searchsorted(self._keys, keys, "right")
        for place in np.flatnonzero(last > first):
            for number in self._numbers[first[place] : last[place]]:
                yield int(place), int(number)
