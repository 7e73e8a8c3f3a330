"""Rows of parquet files, read a few at a time: a small file can hold compressed cells of gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LONGEST_ROW = 2**26  # bytes or characters; a parsed row takes up to thirty times as much memory
_ROWS_AT_ONCE = 8  # each may hold the same long text, which the file stores once
_LARGE_GROUP = 2**28  # bytes of a group of rows, above which they are read one by one


def open_parquet(path: str | Path) -> Any:
    """Open a file as a `pyarrow.parquet.ParquetFile` that compares the checksums of its pages.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: it is damaged; ValueError: a column's name is not UTF-8.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True)


def batches(file: Any, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the rows of an opened `pyarrow.parquet.ParquetFile` in batches of a few rows.

    Raises:
        ValueError: a row has more than `LONGEST_ROW` bytes.
        pyarrow.ArrowException: the file is damaged.
    """
    groups = (file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    rows = 1 if max(groups, default=0) > _LARGE_GROUP else _ROWS_AT_ONCE
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        if batch.nbytes <= LONGEST_ROW:
            yield batch
            continue
        for place in range(len(batch)):
            row = batch.slice(place, 1)
            if row.nbytes > LONGEST_ROW:
                raise ValueError(f"a row of more than {LONGEST_ROW:,} bytes, longer than any")
            yield row
