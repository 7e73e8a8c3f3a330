"""Strict reading of YAML: every key is known, has the right type, and stands there once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.layers import read_layered

T = TypeVar("T")
_TYPE_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "a mapping of keys to values"}
_REQUIRED: Any = object()


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                problem = f"key {key!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_layered(path: Path) -> Any:
    """Read a suite's or a task's file, laid over those that it includes.

    Raises:
        UserError: a file is missing, unreadable or not YAML; the line is named.
    """
    return read_layered(path, "eval_suites", _StrictLoader)


class Fields:
    """A mapping from a file, taken apart key by key.

    Attributes:
        where: the file (and key) that messages name.
    """

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
            raise UserError(f"{where}: must be a mapping of keys to values")
        self._raw: dict[str, Any] = dict(raw)
        self._known: set[str] = set()
        self.where = where

    def error(self, key: str, problem: str) -> UserError:
        """An error about a key."""
        return UserError(f"{self.where}: {key}: {problem}")

    def take(self, key: str, kind: type[T], default: T = _REQUIRED) -> T:
        """The value of a key, of this type.

        Raises:
            UserError: the key is missing and has no default, or the value has another type.
        """
        self._known.add(key)
        value = self._raw.pop(key, None)
        if value is None:
            if default is _REQUIRED:
                raise UserError(f"{self.where}: key {key!r} is missing; add it")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = _TYPE_NAMES.get(kind, kind.__name__)
            hint = "; put it in quotes" if kind is str and not isinstance(value, (dict, list)) else ""
            raise self.error(key, f"must be {wanted}, not {value!r}{hint}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The value of a key that may be absent or null."""
        self._known.add(key)
        if self._raw.get(key) is None:
            self._raw.pop(key, None)
            return None
        return self.take(key, kind)

    def choice(self, key: str, choices: Collection[str], default: str = _REQUIRED) -> str:
        """The value of a key that must be one of a few words."""
        value = self.take(key, str, default)
        if value not in choices:
            raise self.error(key, f"unknown {value!r}; {did_you_mean(value, choices)}")
        return value

    def texts(self, key: str, choices: Collection[str] | None = None) -> tuple[str, ...]:
        """The value of a key that holds a list of texts (one text is a list of one); empty if absent."""
        self._known.add(key)
        if isinstance(self._raw.get(key), str):
            self._raw[key] = [self._raw[key]]
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"every entry must be text, not {value!r}")
            if choices is not None and value not in choices:
                raise self.error(key, f"unknown {value!r}; {did_you_mean(value, choices)}")
        return tuple(values)

    def positive(self, key: str) -> int:
        """The value of a key that must be a whole number above 0."""
        value = self.take(key, int)
        if value < 1:
            raise self.error(key, f"must be at least 1, not {value}")
        return value

    def raw(self, key: str) -> Any:
        """The value of a key, whatever it is; None if absent."""
        self._known.add(key)
        return self._raw.pop(key, None)

    def finish(self) -> None:
        """Raise a UserError if a key is left that nobody asked for."""
        for key in self._raw:
            raise UserError(f"{self.where}: unknown key {key!r}; {did_you_mean(key, self._known)}")
