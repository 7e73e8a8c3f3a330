"""Zip files as torch and the evaluator write them: nothing in them is compressed, so that none is larger inside."""

from __future__ import annotations

import zipfile
from pathlib import Path


def is_compressed(file: Path) -> bool:
    """Whether a file is a zip archive with compressed members, which may be a thousand times as large as it."""
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except Exception:  # zipfile raises what it meets: names that are not UTF-8, compressions that it does not know
        return True
