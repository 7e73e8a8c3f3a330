"""Rows of JSON Lines and JSON lists, read one at a time; only a list inside an object is read into memory whole."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from mmtune.common.errors import UserError, brief
from mmtune.data.sources.tables import LONGEST_ROW

# A row that cannot be read is given as an exception
NumberedRows = Iterator[tuple[int, Any]]
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_LONGEST = LONGEST_ROW
_LARGEST_OBJECT = 2**28  # characters of an object around the rows, which is read whole
_LINES = "JSON Lines have an object on each line"
_CHUNK = 2**20  # characters read at a time
_TAIL = 12  # last characters of the text read so far, whose meaning may change once more is read


def json_lines(path: Path) -> NumberedRows:
    """Yield the rows of a file with an object on each line, in UTF-8, or in UTF-16 or UTF-32 from Windows tools.

    Raises:
        UserError: the file is UTF-16 or UTF-32, and damaged; its line ends are not known then.
    """
    with path.open("rb") as stream:
        encoding = json.detect_encoding(stream.read(4))
        stream.seek(0)
        if encoding.startswith("utf-8"):
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    yield number, _json_or_error(line)
        else:
            yield from _wide_lines(path, io.TextIOWrapper(stream, encoding, newline="\n"))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of a line longer than `_LONGEST`, only the first `_LONGEST` + 1 bytes."""
    while line := stream.readline(_LONGEST + 1):
        yield line
        while len(line) > _LONGEST and not line.endswith(b"\n"):
            line = stream.readline(_LONGEST + 1)


def _wide_lines(path: Path, stream: IO[str]) -> NumberedRows:
    number = 0
    try:
        for number, line in enumerate(iter(lambda: stream.readline(_LONGEST + 1), ""), 1):
            if len(line) > _LONGEST:
                raise ValueError(f"a line of more than {_LONGEST:,} characters, longer than any row")
            if line.strip():
                yield number, json.loads(line, object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error}; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, row {number}: not valid JSON: {error}; save it as UTF-8") from None


def json_list(path: Path) -> NumberedRows:
    """Yield the rows of a file that is one list, an object with one list in it, or JSON Lines.

    Raises:
        UserError: the file is not JSON, and the message names the row of a list; or it holds no list of rows.
    """
    try:
        with path.open("rb") as raw:
            encoding = json.detect_encoding(raw.read(4))
        with path.open(encoding=encoding, newline="") as stream:
            window = _Window(stream)
            first = window.next()
            if first and first != "[":
                yield from _wrapped_rows(path, window.rest())
            elif first:
                yield from _list_rows(path, window)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error}; save it as UTF-8") from None


def _list_rows(path: Path, window: _Window) -> NumberedRows:
    window.skip(1)
    number = 0
    while window.next() != "]" or number:
        number += 1
        try:
            row = window.decode()
            if (after := window.next()) not in ("]", ","):
                raise ValueError(f"expected ',' or ']': {window.place(0)}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, row {number}: not valid JSON: {error}") from None
        yield number, row
        if after == "]":
            break
        window.skip(1)
    window.skip(1)
    if window.next():
        raise UserError(f"{path}: not valid JSON: {window.rest()[:20]!r} follows the end of the list")


class _Window:
    """Window of a text file that is being parsed, filled in chunks."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._text, self._position = stream, "", 0
        self._lines, self._column = 0, 0  # before the text: line breaks, and characters after the last of them
        self._decoder = json.JSONDecoder(object_pairs_hook=_distinct)

    def next(self) -> str:
        """Skip white space and return the next character, without consuming it; empty at the end of the file."""
        while True:
            if found := _NOT_SPACE.search(self._text, self._position):
                self._position = found.start()
                return found[0]
            self._position = len(self._text)
            if not self._more():
                return ""

    def skip(self, characters: int) -> None:
        """Move forward by this number of characters."""
        self._position += characters

    def rest(self) -> str:
        """Return the unparsed text and up to `_LARGEST_OBJECT` + 1 more characters of the file."""
        return self._text[self._position :] + self._stream.read(_LARGEST_OBJECT + 1)

    def decode(self) -> Any:
        """Decode the value at the current position, and move behind it.

        Raises:
            ValueError: it is not JSON (the message names line and column), or an object has a key twice.
            RecursionError: it is nested too deeply.
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL
                if may_go_on and self._more():
                    continue
                raise ValueError(f"{error.msg}: {self.place(error.pos - self._position)}") from None
            if end > len(self._text) - _TAIL and self._more():  # a number may go on
                continue
            self._position = end
            return value

    def place(self, ahead: int) -> str:
        """Return line and column of the character `ahead` characters from here, both counted from 1."""
        end = self._position + ahead
        break_before = self._text.rfind("\n", 0, end)
        column = end - break_before if break_before >= 0 else self._column + end + 1
        return f"line {self._lines + self._text.count(chr(10), 0, end) + 1} column {column}"

    def _more(self) -> bool:
        """Read more text; return False at the end of the file.

        A chunk is at least as long as the unparsed text, so that a long row is not parsed too often.

        Raises:
            ValueError: the unparsed text is longer than any row.
        """
        if len(self._text) - self._position > _LONGEST:
            raise ValueError(f"a row of more than {_LONGEST:,} characters: {self.place(0)}")
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._position))
        if not chunk:
            return False
        gone = self._text[: self._position]
        self._lines += gone.count("\n")
        self._column = len(gone) - gone.rfind("\n") - 1 if "\n" in gone else self._column + len(gone)
        self._text, self._position = self._text[self._position :] + chunk, 0
        return True


def _wrapped_rows(path: Path, text: str) -> NumberedRows:
    """Yield the rows of a list that some exporters wrap in an object, or of JSON Lines in a `.json` file."""
    if len(text) > _LARGEST_OBJECT:
        yield from _lines_of_large_file(path, text)
        return
    try:
        rows = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from json_lines(path)
            return
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, dict):
        raise UserError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    lists = [value for value in rows.values() if isinstance(value, list)]
    if len(lists) != 1:
        raise UserError(f"{path}: expected a list of rows, found an object with keys {brief(', '.join(rows), 200)}")
    yield from enumerate(lists[0], 1)


def _lines_of_large_file(path: Path, text: str) -> NumberedRows:
    """Return the rows of large JSON Lines, recognized by a complete first row; refuse one object of this size."""
    try:
        json.JSONDecoder().raw_decode(text[:_LONGEST])
    except (ValueError, RecursionError):
        raise UserError(
            f"{path}: an object of more than {_LARGEST_OBJECT:,} characters; save the list of rows in it alone, which "
            "is read a row at a time"
        ) from None
    return json_lines(path)


def _json_or_error(line: str | bytes) -> Any:
    if len(line) > _LONGEST:
        return ValueError(f"a line of more than {_LONGEST:,} bytes, longer than any row; {_LINES}")
    try:
        return json.loads(line, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict of an object and refuse a key given twice; Python's parser would silently drop the first value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {brief(repr(twice))} is given twice")
    return found
