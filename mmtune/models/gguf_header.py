"""Check of a GGUF file's header within the bounds of the file, before a library reads it.

The library creates an object for every array element that the header declares, whether the element exists or not.
Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from mmtune.common.errors import UserError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_WHOLE = {4: "<I", 5: "<i", 10: "<Q", 11: "<q"}  # integer types of counts
_STRING, _ARRAY = 8, 9
_MOST_ELEMENTS = 4_000_000  # in all arrays together: vocabularies have three or four of some 250,000
_MOST_BLOCKS = 2_000  # of a model, each of which is created before its weights are looked up
_MOST_DIMENSIONS = 8


def check_gguf(file: Path) -> None:
    """Check that the header of a GGUF file is plausible.

    Raises:
        UserError: it is no GGUF file, or its header declares more than the file holds, or more than any model has.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).header()
    except (struct.error, ValueError) as error:  # the latter also of an empty file
        problem = "it ends in its header" if isinstance(error, struct.error) else error
        raise UserError(f"{file}: not a GGUF file that can be read: {problem}; download it again") from None


class _Walk:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place, self._elements = data, 0, 0

    def header(self) -> None:
        magic, version = self._data[:4], self._number("<I", 4)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it does not begin as version 2 or 3, with the low byte first")
        self._place = 8
        tensors, pairs = self._take("<Q"), self._take("<Q")
        for _ in range(self._fits(pairs, 12)):
            key = self._string()
            self._value(key, self._take("<I"))
        for _ in range(self._fits(tensors, 24)):
            self._string()
            dimensions = self._take("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions:,} dimensions")
            self._skip(8 * dimensions + 12)

    def _value(self, key: bytes, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            self._array(self._take("<I"), self._take("<Q"))
        elif kind in _SIZES:
            blocks = self._number(_WHOLE[kind], self._place) if key.endswith(b".block_count") and kind in _WHOLE else 0
            if not 0 <= blocks <= _MOST_BLOCKS:
                raise ValueError(f"a model of {blocks:,} blocks")
            self._skip(_SIZES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind:,}")

    def _array(self, kind: int, count: int) -> None:
        if kind != _STRING and kind not in _SIZES:
            raise ValueError(f"an array of the type {kind:,}")
        self._elements += self._fits(count, _SIZES.get(kind, 8))
        if self._elements > _MOST_ELEMENTS:
            raise ValueError(f"arrays of more than {_MOST_ELEMENTS:,} values")
        if kind == _STRING:
            for _ in range(count):
                self._string()
        else:
            self._skip(count * _SIZES[kind])

    def _string(self) -> bytes:
        size = self._fits(self._take("<Q"), 1)
        found = self._data[self._place : self._place + size]
        self._place += size
        return found

    def _fits(self, count: int, each: int) -> int:
        if count * each > len(self._data) - self._place:
            raise ValueError(f"it says that {count:,} values follow, and ends before")
        return count

    def _skip(self, size: int) -> None:
        self._place += self._fits(size, 1)

    def _take(self, form: str) -> int:
        number = self._number(form, self._place)
        self._place += struct.calcsize(form)
        return number

    def _number(self, form: str, place: int) -> int:
        [number] = struct.unpack_from(form, self._data, place)
        return int(number)
