"""Readers of files and hub datasets as conversations; every message names file and row."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from mmtune.common.errors import RowError, UserError, brief
from mmtune.common.files import locate
from mmtune.common.hub import go_offline_if_unreachable, kept_files, undecoded_rows
from mmtune.data.conversation import Conversation, check
from mmtune.data.images import ImageSource
from mmtune.data.sources.columns import finite_number
from mmtune.data.sources.formats import Format, parse_row, unread
from mmtune.data.sources.image_paths import OutsideError, find_image
from mmtune.data.sources.json_files import NumberedRows, json_lines, json_list
from mmtune.data.sources.tables import LONGEST_ROW, batches, open_parquet

OnBadRow = Literal["error", "skip"]
_NAMED = 20  # columns in one line
_FILE_SUFFIXES = {".csv", ".json", ".jsonl", ".ndjson", ".parquet"}
# owner/name[:config[:split]]; a name without an owner could be one of the library's own loaders ("json",
# "csv"), which read the working folder
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[^:]*){0,2}")


@dataclass
class BadRows:
    """Policy for rows that cannot be used, and a record of these rows.

    Attributes:
        policy: `error` stops at the first, `skip` leaves them out.
        skipped: the message of each row left out.
        unread: by source, the number of rows in which a column or key has a value that is not read.
    """

    policy: OnBadRow = "error"
    skipped: list[str] = field(default_factory=list)
    unread: dict[str, Counter[str]] = field(default_factory=dict)

    def handle(self, error: RowError) -> None:
        """Record the error of a row, or raise it.

        Raises:
            RowError: the policy is `error`.
        """
        if self.policy == "error":
            raise RowError(f"{error} (--data.on_bad_row skip leaves such rows out)")
        self.skipped.append(str(error))

    def not_read(self) -> list[str]:
        """Return a line for each source with columns or keys that are not read."""
        return [f"{source}: not read: {count_columns(columns)}" for source, columns in self.unread.items()]


def count_columns(columns: Mapping[str, int]) -> str:
    """List columns with the number of rows that fill them as text, the most frequent first."""
    ordered = sorted(columns.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{brief(repr(name))} ({rows:,} row{'s' * (rows > 1)})" for name, rows in ordered[:_NAMED]]
    more = [f"{len(ordered) - _NAMED} more"] if len(ordered) > _NAMED else []
    return ", ".join(shown + more)


@dataclass(frozen=True, slots=True)
class Reading:
    """Conversation of a row, with the format that the row was recognized as."""

    format: str
    conversation: Conversation


def read_conversations(
    source: str,
    *,
    image_root: str | None = None,
    bad_rows: BadRows | None = None,
    value_columns: Sequence[str] = (),
) -> Iterator[Conversation]:
    """Stream the conversations of a file or hub data set.

    Args:
        source: a `.json`, `.jsonl`, `.csv` or `.parquet` file, `package:NAME/file`, or a hub id (`owner/name`,
            `owner/name:config`, `owner/name:config:split`; the split is `train` unless given).
        image_root: the folder that image paths are relative to and must lie in; without it, the file's own folder
            (or its `images`).
        bad_rows: what to do with rows that cannot be used (default: stop at the first).
        value_columns: columns that hold a number in every row; they have no other meaning then.

    Raises:
        UserError: the source cannot be read at all.
        RowError: a row cannot be used, under the policy `error`.
    """
    for reading in read_rows(source, image_root=image_root, bad_rows=bad_rows, value_columns=value_columns):
        yield reading.conversation


def read_rows(
    source: str,
    *,
    image_root: str | None = None,
    bad_rows: BadRows | None = None,
    value_columns: Sequence[str] = (),
) -> Iterator[Reading]:
    """Yield conversations like `read_conversations`, with the format that each row was recognized as."""
    bad_rows = bad_rows or BadRows()
    rows, own = _open(source)
    root = own if image_root is None else locate(image_root)
    if root is not None and not root.is_dir():
        raise UserError(f"--data.train.image_root {image_root}: no such folder")
    folders = ([] if root is None else [root]) + ([] if own else [*kept_files()])
    number = 0
    for number, row in rows:
        where = f"{source}, row {number}"
        try:
            values, row = _split_values(row, value_columns, where)
            known, drafts = _parse(row, where)
        except RowError as error:
            bad_rows.handle(error)
            continue
        if columns := unread(row, known):
            bad_rows.unread.setdefault(source, Counter()).update(columns)
        for turns, images in drafts:  # a conversation that cannot be used does not exclude the others of its row
            try:
                images = tuple(_found(image, folders, where) for image in images)
                conversation = check(Conversation(tuple(turns), images, source, number, values))
            except RowError as error:
                bad_rows.handle(error)
            else:
                yield Reading(known.name, conversation)
    if not number:
        raise UserError(f"{source}: holds no rows")


def _split_values(row: Any, columns: Sequence[str], where: str) -> tuple[dict[str, float], Any]:
    """Return the numbers in some columns of a row, and the row without these columns."""
    if not columns or not isinstance(row, dict):
        return {}, row
    values = {column: finite_number(row.get(column), repr(column), where) for column in columns}
    return values, {name: value for name, value in row.items() if name not in values}


def _parse(row: Any, where: str) -> tuple[Format, list[Any]]:
    if isinstance(row, ValueError):
        raise RowError(f"{where}: {row}")
    if not isinstance(row, dict):
        hint = " (a file that is one JSON list must be named .json)" if isinstance(row, list) else ""
        raise RowError(f"{where}: is {type(row).__name__}, not an object{hint}")
    return parse_row(row, where)


def _found(image: ImageSource, folders: Sequence[Path], where: str) -> ImageSource:
    """Find the file of an image, so that a missing file is detected before training starts."""
    if isinstance(image, bytes):
        return image
    named = brief(str(image), 200)
    try:
        file = find_image(image, folders)
    except OutsideError as error:
        leads = f" (by a link, at {error.target})" if error.target else ""
        links = ", or set MMTUNE_FOLLOW_LINKS=1 if the links in there are yours" if error.target else ""
        raise RowError(
            f"{where}: the photo {named} lies outside {error.folder}{leads}; give --data.train.image_root a folder "
            f"that holds it{links}"
        ) from None
    if file is not None:
        return file
    raise RowError(f"{where}: the photo {named} does not exist; --data.train.image_root names the folder of the photos")


def _open(source: str) -> tuple[NumberedRows, Path | None]:
    """Return the numbered rows of a source, and the folder of its image paths; None for a hub dataset."""
    path = locate(source)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in _FILE_SUFFIXES:
            raise UserError(f"{source}: unknown kind of file; expected {', '.join(sorted(_FILE_SUFFIXES))}")
        read = {".parquet": _parquet_rows, ".json": json_list, ".csv": _csv_rows}.get(suffix, json_lines)
        return read(path), path.parent
    if path.is_dir():
        raise UserError(f"{source}: is a folder; give the file in it")
    if suffix in _FILE_SUFFIXES or not _HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such file (and no hub id, which reads owner/name)")
    return _hub_rows(source), None


def _csv_rows(path: Path) -> NumberedRows:
    """Yield the rows below the header, whose cells name the columns; every cell is text."""
    csv.field_size_limit(LONGEST_ROW)  # for the whole process; Python's own is 131,072 characters
    try:
        with path.open("rb") as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        # spreadsheets begin a file with a byte order mark
        with path.open(encoding="utf-16" if wide else "utf-8-sig", newline="") as stream:
            reader = csv.DictReader(_bounded(stream), strict=True)
            names = list(reader.fieldnames or [])
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{path}: two columns are named {brief(repr(twice))}; rename one of them")
            for number, row in enumerate(reader, 1):
                if None in row:
                    problem = "more cells than the header; put a text that holds commas in double quotes"
                    raise UserError(f"{path}, row {number}: {problem}")
                yield number, row
    except (csv.Error, ValueError) as error:  # ValueError: not UTF-8, or a line that is too long
        raise UserError(f"{path}: not valid CSV: {error}; save it as UTF-8, with commas between the cells") from None


def _bounded(stream: IO[str]) -> Iterator[str]:
    """Yield the lines of a text with their line ends.

    Raises:
        ValueError: a line has more than `LONGEST_ROW` characters.
    """
    while line := stream.readline(LONGEST_ROW + 1):
        if len(line) > LONGEST_ROW:
            raise ValueError(f"a line of more than {LONGEST_ROW:,} characters, longer than any row")
        yield line


def _parquet_rows(path: Path) -> NumberedRows:
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            number = 0
            for batch in batches(file):
                for row in _batch_rows(batch):
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: the name of a column is not UTF-8
        raise UserError(f"{path}: not a readable parquet file: {error}") from None


def _batch_rows(batch: Any) -> list[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a date that Python cannot represent
        if len(batch) > 1:  # read the other rows of the batch, which may be valid
            return [row for number in range(len(batch)) for row in _batch_rows(batch.slice(number, 1))]
        return [ValueError(f"cannot be read: {error}")]
    return rows


def _hub_rows(source: str) -> NumberedRows:
    go_offline_if_unreachable()
    from datasets import load_dataset

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        dataset = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises a different one for every way this can fail
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: no such file, and the hub data set cannot be loaded ({reason}); "
            "check the path or the id, or download the data and give the file"
        ) from None
    yield from enumerate(undecoded_rows(dataset), 1)
