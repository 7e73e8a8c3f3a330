"""In-memory rows, written to a cache file for the readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError, brief
from mmtune.common.files import atomic_path, cache_dir


def rows_file(rows: Any, name: str = "data") -> Path:
    """Write rows to a cache file named by the hash of their content, unless it exists; return its path.

    So the rows have the same fingerprint, cached tokens and errors as rows of a file.

    Args:
        rows: a list of dicts, a `datasets.Dataset`, a pandas frame, or any other iterable of dicts.
        name: the name of the rows in messages.

    Raises:
        UserError: the rows are something else, there are none, or a value is not a JSON value; images are given as
            paths.
    """
    lines = [_line(row, number, name) for number, row in enumerate(_dicts(rows, name), 1)]
    if not lines:
        raise UserError(f"{name}: there are no rows")
    content = "".join(lines).encode()
    file = cache_dir() / "rows" / f"{hashlib.sha256(content).hexdigest()[:32]}.jsonl"
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
    return file


def _dicts(rows: Any, name: str) -> Iterable[Any]:
    if hasattr(rows, "notna") and hasattr(rows, "columns"):  # a pandas frame, whose empty cells are null
        found: Iterable[Any] = rows.astype(object).where(rows.notna(), None).to_dict(orient="records")
        return found
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise UserError(
            f"{name}: is a {type(rows).__name__}; give a list of dicts, a datasets.Dataset or a pandas frame"
        )
    return rows


def _line(row: Any, number: int, name: str) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"{name}, row {number}: is a {type(row).__name__}; give a dict")
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=_plain) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}, row {number}: {brief(str(error))}; give text, numbers, lists and dicts, and images as paths"
        ) from None


def _plain(value: Any) -> Any:
    """Convert a value of numpy or a path to a JSON value."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value is a {type(value).__module__}.{type(value).__qualname__}")
