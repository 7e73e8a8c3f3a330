"""Damage, by a seeded generator: to bytes, to JSON values, and to how they are written."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# what JSON cannot say through `json.dumps`: written as these texts, and replaced after
_RAW = {
    "@deep": "[" * 2000 + "]" * 2000,
    "@deeper": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@digits": "9" * 5000,
    "@huge": "1e999",
    "@nan": "NaN",
    "@minus": "-Infinity",
}
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**63,
    10**400,
    *_RAW,
    "",
    " ",
    "\0",
    "a\0b",
    "x" * 100_000,
    "é" * 300,
    "\ud800",
    "\u202e\x1b[31m",
    "~nobody-of-this-name/x",
    "../../etc/passwd",
    "/",
    ".",
    "package:__main__/x",
    "package:mmtune/",
    "cache:",
    "<image>",
    "{{ 7 * 7 }}",
    "{% for",
    [],
    {},
    [None],
    [[]],
    {"": None},
    ["a", 1, {"b": 2}],
    {"bytes": None, "path": None},
)
_BYTES = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"}",
    b"]",
    b",",
    b"\r",
    b"NaN",
    b"9" * 5000,
    b"\\ud800",
)


def damaged(data: bytes, random: random.Random) -> bytes:
    """The bytes with one to three injuries."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        _injure(content, random)
    return bytes(content)


def _injure(content: bytearray, random: random.Random) -> None:
    if not content:
        content += b"\0"
        return
    at = random.randrange(len(content))
    span = slice(at, at + random.choice((1, 2, 4, 16, 256, 4096)))
    match random.randrange(9):
        case 0:
            del content[at:]
        case 1 | 2:
            content[at] ^= 1 << random.randrange(8)
        case 3:
            content[at:at] = random.choice(_BYTES)
        case 4:
            del content[span]
        case 5:
            content[span] = bytes(len(content[span]))
        case 6:
            content[span] = random.randbytes(len(content[span]))
        case 7:
            content[at:at] = content[span] * random.choice((1, 2, 50))
        case 8:
            other = random.randrange(len(content))
            content[at], content[other] = content[other], content[at]


def altered(value: Any, random: random.Random) -> Any:
    """A copy of a JSON value with one to three places changed: another value, or a key gone, renamed or exchanged."""
    whole = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder, key = random.choice(list(_places(whole)))
        kind = random.randrange(8)
        if isinstance(holder, dict) and kind == 0 and holder is not whole:
            del holder[key]
        elif isinstance(holder, dict) and kind == 1 and holder is not whole:
            holder[random.choice(("", key.upper(), key + " ", "__class__", "x" * 1000))] = holder.pop(key)
        elif isinstance(holder, list) and kind == 0:
            del holder[key]
        elif isinstance(holder, list) and kind == 1:
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 2:
            other, name = random.choice(list(_places(whole)))
            if other is not whole and holder is not whole and not _inside(other[name], holder):
                holder[key] = copy.deepcopy(other[name])
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = random.choice((-holder[key], holder[key] + 1, str(holder[key]), 10**30, 1e308, 0))
        else:
            holder[key] = copy.deepcopy(random.choice(ODD))  # which later changes must not reach
    return whole[""]


def _places(value: Any) -> Any:
    """Every (holder, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _inside(value: Any, holder: Any) -> bool:
    return value is holder or any(inner is holder for _, key in _places(value) for inner in [_[key]])


def written(value: Any, random: random.Random, *, plain: bool = False) -> bytes:
    """JSON, sometimes with a key twice, or in an encoding that is not asked for; `plain` neither."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    how = 9 if plain else random.randrange(20)
    if how == 0 and '{"' in text:
        at = text.index('{"') + 1
        key = text[at : text.index(":", at)]
        text = f"{text[:at]}{key}: {random.choice(('null', '1', '[]'))}, {text[at:]}"
    encoding = {1: "utf-16", 2: "utf-8-sig", 3: "latin-1", 4: "utf-32"}.get(how, "utf-8")
    return text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")
