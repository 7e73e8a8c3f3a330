"""Store of millions of examples that keeps only some tens of bytes of each in memory."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from mmtune.common.disk import naming
from mmtune.data.conversation import IMAGE_PLACEHOLDER, Conversation
from mmtune.data.encoding import Example
from mmtune.data.images import ImageSource

_IN_MEMORY = 2**26  # bytes of tokens; more go to a file


class ExampleStore:
    """Store of examples, numbered in the order they were added; all are added before the first is read.

    Tokens beyond 64 MiB are in an unnamed file in the system's folder for temporary files ($TMPDIR). It is
    memory-mapped, and deleted when the process ends. Images that rows hold as bytes stay in memory.
    """

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._source_of, self._rows, self._lengths, self._cut = array("i"), array("q"), array("i"), array("i")
        self._texts = array("q")
        self._begins = array("q", [0])  # in words of 4 bytes
        self._images: dict[ImageSource, int] = {}  # numbered by first appearance
        self._shown, self._shown_until = array("i"), array("q", [0])
        self._values: dict[str, array[float]] = {}  # the same columns of every example
        self._buffer: bytearray = bytearray()
        self._file: IO[bytes] | None = None

    def add(self, example: Example, conversation: Conversation) -> int:
        """Store the example of a conversation and return its number.

        Raises:
            OSError: the folder for temporary files is full.
        """
        number = len(self._rows)
        self._source_of.append(self._sources.setdefault(conversation.source, len(self._sources)))
        self._rows.append(conversation.row)
        self._lengths.append(len(example))
        self._cut.append(example.cut)
        self._texts.append(_text_key(conversation))
        self._shown.extend(self._images.setdefault(image, len(self._images)) for image in example.images)
        self._shown_until.append(len(self._shown))
        for column, value in example.values.items():
            self._values.setdefault(column, array("d")).append(value)
        self._buffer += example.input_ids.tobytes() + example.supervised.tobytes()
        self._buffer += bytes(-len(example) % 4)
        self._begins.append(self._begins[-1] + len(example) + -(-len(example) // 4))
        if len(self._buffer) > _IN_MEMORY:
            self._write()
        return number

    def kind(self, number: int) -> tuple[str, bool]:
        """Return the file or hub id of an example, and whether it shows an image."""
        return self._names[self._source_of[number]], self._shown_until[number] < self._shown_until[number + 1]

    def images(self, number: int) -> tuple[ImageSource, ...]:
        """Return the images of an example."""
        shown = self._shown[self._shown_until[number] : self._shown_until[number + 1]]
        return tuple(self.all_images[image] for image in shown)

    def shown(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return, for every image of these examples, the example's index in `numbers` and its own in `all_images`."""
        until = np.frombuffer(self._shown_until, dtype=np.int64)
        wanted = np.asarray(numbers, dtype=np.int64)
        begins, counts = until[wanted], until[wanted + 1] - until[wanted]
        owners = np.repeat(np.arange(len(wanted)), counts)
        places = np.arange(counts.sum()) + np.repeat(begins - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return owners, np.frombuffer(self._shown, dtype=np.intc)[places.astype(np.int64)]

    def text_keys(self, numbers: Sequence[int]) -> np.ndarray:
        """Return a hash of each example's text, without the system prompt: int64 [examples]."""
        return np.frombuffer(self._texts, dtype=np.int64)[np.asarray(numbers, dtype=np.int64)]

    def length(self, number: int) -> int:
        """Return the number of tokens of an example."""
        return self._lengths[number]

    def example(self, number: int) -> Example:
        """Return an example; its token arrays are views."""
        begin, length = self._begins[number], self._lengths[number]
        words = self._words[begin : self._begins[number + 1]]
        supervised = words[length:].view(bool)[:length]
        where = f"{self.kind(number)[0]}, row {self._rows[number]}"
        values = {column: each[number] for column, each in self._values.items()}
        return Example(words[:length], supervised, self.images(number), where, self._cut[number], values)

    @cached_property
    def _names(self) -> list[str]:
        return list(self._sources)

    @cached_property
    def all_images(self) -> list[ImageSource]:
        """Distinct images of all examples, each path once."""
        return list(self._images)

    @cached_property
    def _words(self) -> np.ndarray:
        """All tokens, int32 [words]: of each example its ids, then one byte per token for `supervised`."""
        if self._file is None:
            return np.frombuffer(memoryview(self._buffer).toreadonly(), dtype=np.int32)
        self._write().flush()
        # as a plain array: slices of a memmap take three times as long
        return np.memmap(self._file, dtype=np.int32, mode="r").view(np.ndarray)

    def _write(self) -> IO[bytes]:
        with naming(Path(tempfile.gettempdir())):
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115  # open as long as it is mapped
            self._file.write(self._buffer)
        self._buffer.clear()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the unnamed file; a process that is not forked gets a copy of the tokens."""
        return self.__dict__ | {"_words": np.array(self._words), "_buffer": bytearray(), "_file": None}


def _text_key(conversation: Conversation) -> int:
    """Return an 8-byte hash of the dialogue, independent of white space and the positions of images."""
    said = [" ".join(turn.text.replace(IMAGE_PLACEHOLDER, "").split()) for turn in conversation.dialogue]
    digest = hashlib.blake2b("\0".join(said).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


class Examples(Sequence[Example]):
    """Ordered selection of the examples of a store."""

    def __init__(self, store: ExampleStore, numbers: Sequence[int] | np.ndarray) -> None:
        self._store, self._numbers = store, np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> Examples: ...

    def __getitem__(self, place: int | slice) -> Example | Examples:
        if isinstance(place, slice):
            return Examples(self._store, self._numbers[place])
        return self._store.example(int(self._numbers[place]))

    def __iter__(self) -> Iterator[Example]:
        return map(self._store.example, self._numbers.tolist())

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        return [self._store.length(number) for number in self._numbers.tolist()]
