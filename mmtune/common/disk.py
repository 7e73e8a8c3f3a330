"""Disk errors, locks, and temporary folders that survive a killed process."""

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
    """Return the disk error that caused an exception, or None if the disk is not the cause.

    The chain of causes is searched, because libraries report disk errors in many forms.
    """
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
    """Format a disk error and its remedy as one line, which begins with the file name if that is known."""
    where = f"{found.filename}: " if found.filename else ""
    if found.errno in _FULL:
        return f"{where}the disk is full; free some space and run the same command again"
    return f"{where}{found.strerror}; mend that and run the same command again, or name another place"


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Add the name of the file that could not be written to disk errors, whichever library raised them.

    Raises:
        OSError: in place of an exception that a disk error caused.
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
    """Hold an exclusive lock on a lock file during the block; wait while another process holds it.

    Raises:
        OSError: the file cannot be created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create a hidden temporary folder for incomplete files, and delete it after the block.

    If the process is killed, the next call with the same parent and name deletes the folder. A lock on the folder
    itself distinguishes a folder in use from one left behind. On a file system without such locks, folders of killed
    processes are not deleted.
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
    """Create a folder and lock it; return the folder and the descriptor that holds the lock.

    Another process may delete the folder before it is locked; then a new one is created.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            if _is_ours(lock) and folder.is_dir():
                return folder, lock
            os.close(lock)


def _is_ours(folder: int) -> bool:
    """Lock a folder; return False if another process has locked it.

    On a file system without locks the result is True, because no process deletes folders there.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def sync(path: Path) -> None:
    """Flush a file, or all files of a folder, from memory to the disk (fsync)."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def put(temporary: Path, target: Path, scratch: Path) -> None:
    """Rename a temporary file or folder to its target, replacing an existing file or folder.

    A non-empty folder that is replaced is moved into `scratch`. Another process may create the target at the same time.
    """
    for number in itertools.count():
        try:
            temporary.replace(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):
            target.rename(scratch / f"replaced-{number}")
