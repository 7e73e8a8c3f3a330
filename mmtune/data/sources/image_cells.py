"""Images in the cells of rows: a path, encoded bytes, or either of them inside an object."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmtune.common.errors import RowError, brief
from mmtune.data.images import ImageSource
from mmtune.data.sources.columns import is_absent

MOST_BYTES = 2**25  # of a photo written into a row as text
_DATA_URI = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)
# PNG, JPEG, GIF and WebP in base64; a path has a dot in it, which base64 has not
_BARE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]+={0,2}\s*")
_KEYS = ("bytes", "path", "image", "url", "image_url", "base64", "data", "source")


def image_in(cell: Any, where: str) -> ImageSource | None:
    """Return the image that a cell names or holds; None where the cell is null or empty.

    Args:
        cell: a path, a `file:` or `data:` address, base64, encoded bytes, or an object with one of these under
            `bytes`, `path`, `image`, `url`, `image_url`, `base64`, `data` or `source`.
        where: file and row, with which a message begins.

    Raises:
        RowError: it is none of these, a web address, or base64 of more than 32 MiB.
    """
    key = None
    while isinstance(cell, Mapping) and not is_absent(cell):
        key = next((key for key in _KEYS if not is_absent(cell.get(key))), None)
        if key is None:
            known = ", ".join(map(repr, _KEYS))
            raise RowError(f"{where}: an image has the keys {brief(', '.join(map(str, cell)))}; known are {known}")
        cell = cell[key]
    if is_absent(cell):
        return None
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise RowError(f"{where}: an image is {type(cell).__name__}; expected a path or the bytes of a picture")
    scheme = cell[:8].lower()
    if scheme.startswith("data:"):
        if not (head := _DATA_URI.match(cell)):
            raise RowError(f"{where}: the photo {brief(cell)} is no data: address of a picture in base64")
        return _decoded(cell[head.end() :], where)
    if key in ("base64", "data") or _BARE.fullmatch(cell):
        return _decoded(cell, where)
    if scheme.startswith(("http://", "https://")):
        raise RowError(f"{where}: the photo {brief(cell)} is a web address; download it and give the file's path")
    return Path(unquote(cell[len("file://") :]) if scheme.startswith("file://") else cell)


def _decoded(written: str, where: str) -> bytes:
    if len(written) * 3 // 4 > MOST_BYTES:
        raise RowError(f"{where}: a photo in base64 has more than {MOST_BYTES >> 20} MiB; keep it as a file")
    try:
        return base64.b64decode("".join(written.split()), validate=True)
    except ValueError as error:
        raise RowError(f"{where}: a photo is not valid base64: {error}") from None
