"""Check of zip archives: torch and the evaluator write them without compression, so they cannot expand."""

from __future__ import annotations

import zipfile
from pathlib import Path


def is_compressed(file: Path) -> bool:
    """Return whether a file is a zip archive with compressed members, or a zip archive that cannot be read.

    Compressed members may expand to a thousand times the size of the file.
    """
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except Exception:  # zipfile raises what it meets: names that are not UTF-8, compressions that it does not know
        return True
