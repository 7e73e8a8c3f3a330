"""What can go wrong with a disk, and what a kill may leave on it: scratch folders, locks, advice."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TROUBLE = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOTDIR, errno.EISDIR)


def trouble(error: BaseException) -> OSError | None:
    """What is wrong with the disk, if that is behind an error: libraries say it in many ways."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError):
            if cause.errno in _TROUBLE:
                return cause
        elif written := re.search(r"\(os error (\d+)\)", str(cause)):  # as libraries written in Rust have it
            number = int(written[1])
            if number in _TROUBLE:
                return OSError(number, os.strerror(number))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def advice(found: OSError) -> str:
    """One line on what is wrong with the disk and what to do, beginning with the file where that is known."""
    where = f"{found.filename}: " if found.filename else ""
    if found.errno in _FULL:
        return f"{where}the disk is full; free some space and run the same command again"
    return f"{where}{found.strerror}; mend that and run the same command again, or name another place"


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Let trouble with the disk name the file that could not be written, whichever library noticed it.

    Raises:
        OSError: in place of what was raised because of such trouble.
    """
    try:
        yield
    except Exception as error:
        found = trouble(error)
        if found is None or found.filename == str(file):
            raise
        raise OSError(found.errno, found.strerror, str(file)) from error


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file.

    Raises:
        OSError: the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder for what is not whole yet; deleted afterwards, or after a kill by the next one of that name.

    A lock on the folder itself tells one in use from one left behind. Where the file system has no such locks, what a
    kill leaves behind stays.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent, f".{name}.")
    scratch, lock = _locked_folder(parent, f".{name}.")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    """Delete the scratch folders of processes that were killed."""
    for left in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):  # it is gone already, or no folder
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and a descriptor that keeps it locked; another process may sweep it away until it is."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            if _is_ours(lock) and folder.is_dir():
                return folder, lock
            os.close(lock)


def _is_ours(folder: int) -> bool:
    """Lock a folder; False where another process has. On a file system without locks there is no one who sweeps."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def sync(path: Path) -> None:
    """Have a file, or all files of a folder, on the disk and not only in memory."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def put(temporary: Path, target: Path, scratch: Path) -> None:
    """Rename, over a folder too, which another process may put there at the same time."""
    for number in itertools.count():
        try:
            temporary.replace(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):
            target.rename(scratch / f"replaced-{number}")
