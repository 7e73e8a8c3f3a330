"""Error messages of the parsers, which name the flag or the config's key and the valid values."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmtune.cli.shared.trusted_code import not_trusted
from mmtune.common.errors import brief, reason
from mmtune.common.layers import layers_of

_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: ([^\s=]+)")
_UNKNOWN_KEY = re.compile(r"(?:Group '(?P<group>[\w.]+)'|Subcommand '\w+') does not accept option '(?P<key>[^']+)'")
_WRONG_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)": (?P<why>.*)')
_INNER_KEY = re.compile(r"Option '([^']+)' is not accepted")
_GIVEN = re.compile(r"(?:Got|Given) value: (?P<value>.*)")
_NOT_TRUSTED = re.compile(r"Importing '(?P<path>[\w.]+)' is not allowed")
_REMOTE = re.compile(r"(?:Expected a path but|Unable to load config) ['\"]?(?P<address>[\w+.-]+:(?://|:)[^\s'\"]+)")
_CHOICES = re.compile(r"typing\.Literal\[([^\[\]]+)\]")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def reworded(message: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """Convert an error message of jsonargparse to one that names the flag or the config's key, without Python types.

    Args:
        message: message of jsonargparse; an unknown one is returned in one line.
        parser: the parser that raised it.
        arguments: arguments of the parser; the files after `--config` are searched for the key.
    """
    message = " ".join(message.split())
    if found := _UNKNOWN_FLAG.match(message):
        word = found[1]
        if not word.startswith("-"):
            return f'{word}: belongs to no flag; quote a value that holds spaces, and write lists as \'["a", "b"]\''
        flags = [flag for action in _actions(parser) for flag in action.option_strings]
        return f"{word}: no such flag{_near(word, flags)}"
    if found := _UNKNOWN_KEY.match(message):
        key = ".".join(part for part in (found["group"], found["key"]) if part)
        keys = [action.dest for action in _actions(parser)]
        parents = [known.removesuffix(f".{key}") for known in keys if known.endswith(f".{key}")]
        belongs = f"; it belongs to {parents[0]!r}: put it below that, further to the right" if parents else ""
        return f"{_place(key, arguments)}: no such key{belongs or _near(key, keys)}"
    if found := _WRONG_VALUE.match(message):
        return _wrong_value(found["key"], found["why"], parser, arguments)
    return message


def unreadable(arguments: Sequence[str], error: ValueError | OverflowError) -> str:
    """Return the message for an exception that jsonargparse does not handle: untrusted code, or a very long number."""
    if code := _NOT_TRUSTED.search(str(error)):  # where a whole group of flags is one value
        return str(not_trusted(place_of(_key_of(code["path"], arguments), arguments), code["path"]))
    culprit = next((argument for argument in arguments if re.search(r"\d{300}", argument)), "--config")
    return f"{brief(culprit)}: cannot be read ({reason(error)})"


def _wrong_value(key: str, why: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    if inner := _INNER_KEY.search(why):
        return f"{_place(f'{key}.{inner[1]}', arguments)}: no such key; --{key}.help lists them"
    flags = [flag for a in _actions(parser) if a.dest == key for flag in a.option_strings if flag.startswith("--")]
    flag = flags[0] if flags else f"--{key}"
    if code := _NOT_TRUSTED.search(why):
        return str(not_trusted(place_of(key, arguments, flag), code["path"]))
    if remote := _REMOTE.search(why):
        where = f"{place_of(key, arguments, flag)} {remote['address']}"
        return f"{where}: configs are read from local files alone; download it, look at it, and give its path"
    given = _GIVEN.search(why)
    if given is None:
        return f"{flag}: {why}"
    place, value = _place(key, arguments, flag, given["value"]), brief(given["value"])
    if choices := _CHOICES.search(why):
        return f"{place} {value}: choose one of: {choices[1].replace(chr(39), '')}"
    if why.startswith("Expected a <class 'list'>"):
        written = f"[{value}]" if place.startswith("--config") else f"'[\"{value}\"]'"
        return f"{place} {value}: must be a list; write {written}"
    kinds = [text for name, text in _KINDS.items() if f"<class '{name}'>" in why]
    return f"{place} {value}: must be {' or '.join(kinds)}" if kinds else f"{place}: {why}"


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of the parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
        else:
            yield action


def _place(key: str, arguments: Sequence[str], flag: str | None = None, value: str | None = None) -> str:
    """Return the flag if the command line gives it (this value), else the last config with the key, else the flag."""
    flag = flag or f"--{key}"
    pairs = list(zip(arguments, [*arguments[1:], ""], strict=True))
    given = [after if word == flag else word.partition("=")[2] for word, after in pairs if word.split("=")[0] == flag]
    if value in given or (value is None and given):
        return flag
    for argument, after in reversed(pairs):
        path = after if argument in ("--config", "-c") else argument.partition("--config=")[2]
        for layer in reversed(layers_of(Path(path), "configs")) if path else ():
            if _holds(layer.settings, key.split(".")):
                return f"--config {layer.path}: {key}"
    return flag


def place_of(key: str, arguments: Sequence[str], flag: str | None = None) -> str:
    """Return the flag, or the config and the key, that a value comes from.

    Args:
        key: dotted key; its last parts may be inside a list, which is given as a whole.
        arguments: the command line.
        flag: flag of the key; `--KEY` by default.
    """
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        part = ".".join(parts[:length])
        if (found := _place(part, arguments, flag if part == key else None)).startswith("--config "):
            return found.removesuffix(part) + key
        if any(word.split("=")[0].rstrip("+") == found for word in arguments):
            return found
    return flag or f"--{key}"


def _key_of(path: str, arguments: Sequence[str]) -> str:
    """Return the key that has this class path in the last config with it; "config" if none has."""
    for word, after in reversed(list(zip(arguments, [*arguments[1:], ""], strict=True))):
        file = after if word in ("--config", "-c") else word.partition("--config=")[2]
        for layer in reversed(layers_of(Path(file), "configs")) if file else ():
            if found := _keys(layer.settings, path):
                return found.removesuffix(".class_path")
    return "config"


def _keys(value: Any, wanted: str) -> str:
    """Return the dotted key of a value; "" if it is not found."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if inner == wanted:
            return str(key)
        if found := _keys(inner, wanted):
            return f"{key}.{found}"
    return ""


def _holds(value: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
