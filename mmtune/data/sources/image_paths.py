"""Image files that rows name: none may lie outside the folders that the user gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmtune.common.files import is_file, lies_in


class OutsideError(ValueError):
    """Image file named by a row exists, but lies outside the allowed folders.

    Attributes:
        folder: the folder that the name is relative to.
        target: where a link in the folder leads; None where no link leads out.
    """

    def __init__(self, folder: Path, target: Path | None) -> None:
        super().__init__(f"outside {folder}")
        self.folder, self.target = folder, target


def find_image(name: str | Path, folders: Sequence[Path]) -> Path | None:
    """Find an image file by its name in a row; None where there is none.

    Rows are untrusted: they must not choose which files of this machine are read.

    Args:
        name: relative to one of the folders, or to an `images` in it; or absolute.
        folders: the folders that may be read; the first that has such a file counts.

    Raises:
        OutsideError: the file lies in none of the folders.
    """
    for folder in folders:
        for file in (folder / name, folder / "images" / name):
            if not is_file(file):
                continue
            if any(lies_in(file, allowed) for allowed in folders):
                return file
            raise OutsideError(folder, file.resolve() if lies_in(file, folder, by_name=True) else None)
    return None
