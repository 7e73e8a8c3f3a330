"""YAML files that include others by the key `include:`; the settings of the including file override them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.common.files import is_file, read_yaml, resource_folder

Kind = Literal["configs", "eval_suites"]
_KEY = "include"
_MOST = 100  # files that one may stand for: a few that include one another often would be read millions of times


class Layer(NamedTuple):
    """YAML file and its own settings, without the key `include`."""

    path: Path
    settings: dict[str, Any]


def read_layered(path: Path, kind: Kind, loader: Any = None) -> Any:
    """Read a YAML file and merge it with the files that it includes.

    Mappings are merged key by key, anything else is replaced.

    Args:
        path: the file.
        kind: the folder of mmtune that is searched for names that are not beside the file.
        loader: loader class of PyYAML, in place of SafeLoader.

    Raises:
        UserError: as `layers_of`.
    """
    value = read_yaml(path, loader)
    if not isinstance(value, dict) or _KEY not in value:
        return value
    merged: dict[str, Any] = {}
    for layer in layers_of(path, kind, loader):
        merged = _laid_over(merged, layer.settings)
    return merged


def layers_of(path: Path, kind: Kind, loader: Any = None) -> list[Layer]:
    """List the files that a YAML file includes, in the order in which they are merged, and the file itself last.

    Raises:
        UserError: a file is missing, cannot be read, holds no keys and values, or includes itself through others; it
            and the file that includes it are named.
    """
    found: list[Layer] = []
    _collect(path, kind, loader, (), found)
    return found


def _collect(path: Path, kind: Kind, loader: Any, above: tuple[Path, ...], found: list[Layer]) -> None:
    """Append the layers of a file to `found`; the files `above` include it."""
    try:
        value = read_yaml(path, loader)
    except UserError as error:
        raise (UserError(f"{above[-1]}: {_KEY}: {error}") if above else error) from None
    if not isinstance(value, dict):
        where = f"{above[-1]}: {_KEY}: {path}" if above else str(path)
        raise UserError(f"{where}: holds no keys and values; the {kind} that mmtune ships show how")
    settings = dict(value)
    names = settings.pop(_KEY, ())
    if _KEY in value and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: {_KEY}: must be a list of names, not {brief(repr(names))}; write {_KEY}: [NAME]")
    for name in names:
        inner = _find(name, path, kind)
        if inner.resolve() in [file.resolve() for file in (*above, path)]:
            raise UserError(f"{path}: {_KEY}: {inner}: includes this file in its turn; remove one of the two")
        _collect(inner, kind, loader, (*above, path), found)
    if len(found) == _MOST:
        raise UserError(f"{path}: {_KEY}: more than {_MOST} files are included; write them as fewer")
    found.append(Layer(path, settings))


def _find(name: str, path: Path, kind: Kind) -> Path:
    """Find the file of an included name: beside the file that includes it, else in mmtune's folder."""
    shipped = resource_folder(kind)
    for folder in (path.parent, shipped):
        for file in (folder / name, folder / f"{name}.yaml"):
            if is_file(file):
                return file
    known = [file.relative_to(shipped).with_suffix("").as_posix() for file in shipped.rglob("*.yaml")]
    raise UserError(
        f"{path}: {_KEY}: {brief(name)}: no file beside it and no name in mmtune's {kind}; {did_you_mean(name, known)}"
    )


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings; values of `above` override those of `below`.

    If `class_path` differs, `above` is returned alone, because the arguments of one class do not fit another.
    """
    if above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return above
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
