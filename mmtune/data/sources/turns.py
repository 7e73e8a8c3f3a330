"""Parsing of turns in the layouts of conversations, with their training weights, thoughts and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmtune.common.errors import RowError, brief
from mmtune.data.conversation import IMAGE_PLACEHOLDER
from mmtune.data.images import ImageSource
from mmtune.data.sources.columns import (
    IMAGES,
    REFUSED_KEYS,
    REFUSED_ROLES,
    THOUGHT,
    WEIGHT,
    given,
    is_absent,
    is_null,
    only,
    refuse,
    text,
)
from mmtune.data.sources.image_cells import image_in
from mmtune.interfaces import Role, Turn

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_SPEAKER, _SAID = ("from", "role"), ("value", "content")
KNOWN_KEYS = frozenset((*_SPEAKER, *_SAID, *WEIGHT.names, *THOUGHT.names))
_IMAGE_KEYS = ("image", "path", "url", "image_url", "base64", "data", "source")
KNOWN_PART_KEYS = frozenset(("type", "text", "index", *_IMAGE_KEYS))
_NEEDED = "'from' and 'value', or 'role' and 'content'"
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")

# Image of an `<image>` mark: an image given there, an index into the row's images, or the next of them (None)
Mark = ImageSource | int | None


@dataclass
class Draft:
    """Conversation under construction, while its row is read.

    Attributes:
        turns: the turns so far.
        marks: for each turn, the images of its `<image>` marks.
    """

    turns: list[Turn] = field(default_factory=list)
    marks: list[list[Mark]] = field(default_factory=list)

    def add(self, turn: Turn, marks: Sequence[Mark] | None = None) -> None:
        """Add a turn; without `marks`, its marks refer to the row's images in their order."""
        self.turns.append(turn)
        self.marks.append([None] * turn.text.count(IMAGE_PLACEHOLDER) if marks is None else list(marks))

    def begin_with_system(self, prompt: str, where: str) -> None:
        """Insert the system prompt of the row's own column before the turns.

        Raises:
            RowError: the turns have another system prompt.
        """
        if not (self.turns and self.turns[0].role == "system"):
            self.turns.insert(0, Turn("system", prompt))
            self.marks.insert(0, [])
        elif self.turns[0].text != prompt:
            raise RowError(f"{where}: has two system prompts that differ, in a column and in a turn; give one of them")

    def drop_greeting(self) -> None:
        """Remove an assistant turn before the first question, as LLaVA does."""
        first = 1 if self.turns and self.turns[0].role == "system" else 0
        if len(self.turns) > first + 1 and self.turns[first].role == "assistant":
            del self.turns[first], self.marks[first]

    def mark_images(self, count: int) -> None:
        """Insert `<image>` marks before the first user text if the row has images and no turn has a mark."""
        first = next((i for i, turn in enumerate(self.turns) if turn.role == "user"), None)
        if any(self.marks) or not count or first is None:
            return
        marks = "\n".join([IMAGE_PLACEHOLDER] * count)
        self.turns[first] = Turn("user", f"{marks}\n{self.turns[first].text}")
        self.marks[first] = [None] * count

    def images(self, of_row: Sequence[ImageSource | None], where: str) -> list[ImageSource]:
        """Return the images in the order of their marks; images without a mark come last.

        Raises:
            RowError: a mark has the index of an image that the row does not have.
        """
        marks = [mark for marks in self.marks for mark in marks]
        in_order = iter([place for place, image in enumerate(of_row) if image is not None])
        shown: list[ImageSource] = []
        used: set[int] = set()
        for mark in marks:
            place = next(in_order, None) if mark is None else mark
            if isinstance(place, int):
                image = of_row[place] if 0 <= place < len(of_row) else None
                if image is None:
                    raise RowError(f"{where}: an image part has index {place}, and the row has no such photo")
                used.add(place)
                shown.append(image)
            elif place is not None:
                shown.append(place)
        return shown + [image for place, image in enumerate(of_row) if image is not None and place not in used]


def read_turns(said: Any, column: str, where: str, draft: Draft, *, supervised: bool = True) -> None:
    """Add the turns of a column to the draft.

    Args:
        said: a list of objects with a speaker (`from` or `role`) and a text (`value` or `content`).
        column: the name of their column.
        where: file and row, with which a message begins.
        draft: the conversation that the turns are added to.
        supervised: whether the answers are learned, unless a turn has its own weight.

    Raises:
        RowError: a turn cannot be read, or holds what would change its meaning if it were dropped.
    """
    if not isinstance(said, list | tuple):
        raise RowError(f"{where}: {column!r} is {type(said).__name__}, not a list of turns")
    for number, turn in enumerate(said, 1):
        _read_turn(turn, f"{where}: turn {number} of {column!r}", draft, supervised=supervised)


def _read_turn(said: Any, here: str, draft: Draft, *, supervised: bool) -> None:
    if not isinstance(said, Mapping) or not (speakers := _filled(said, _SPEAKER)):
        raise RowError(f"{here}: needs the keys {_NEEDED}")
    roles = {_role(said[key], here) for key in speakers}
    if len(roles) > 1:
        raise RowError(f"{here}: has 'from' and 'role', which differ; give one of them")
    [role] = roles
    refuse(said, REFUSED_KEYS, here)
    contents = _filled(said, _SAID)
    if not contents:
        raise RowError(f"{here}: needs the keys {_NEEDED}")
    if any(said[key] != said[contents[0]] for key in contents[1:]):
        raise RowError(f"{here}: has 'value' and 'content', which differ; give one of them")
    marks: list[Mark] = []
    words = _content(said[contents[0]], contents[0], here, marks)
    learned = _learned(said, role, here)
    thought = only(said, THOUGHT, here)
    if thought is not None:
        words = _with_thought(words, role, thought, here)
    if role == "assistant":
        draft.add(Turn(role, words, supervised if learned is None else learned, thought is not None), marks)
    else:
        draft.add(Turn(role, words), marks)


def _filled(said: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """Return the known keys that have a value; if all present keys are null, the first of them."""
    there = [key for key in known if key in said]
    return [key for key in there if not is_null(said[key])] or there[:1]


def _role(name: Any, here: str) -> Role:
    role = _ROLES.get(str(name).lower())
    if role is None:
        if str(name).lower() in REFUSED_ROLES.names:
            raise RowError(f"{here}: has the speaker {name!r}, which {REFUSED_ROLES.text}")
        raise RowError(f"{here}: has the unknown speaker {brief(repr(name))}; known are {', '.join(_ROLES)}")
    return role


def _content(content: Any, key: str, here: str, marks: list[Mark]) -> str:
    if isinstance(content, list | tuple):
        if not len(content):
            raise RowError(f"{here}: {key!r} is a list of no parts")
        return "".join(_part(part, here, marks) for part in content)
    words = text(content, repr(key), here)
    marks.extend([None] * words.count(IMAGE_PLACEHOLDER))
    return words


def _part(part: Any, here: str, marks: list[Mark]) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and is_null(kind):  # Qwen's layout names no type
        kind = next((known for known in ("text", "image") if not is_null(part.get(known))), None)
    if kind in _TEXT_PARTS:
        words = text(part.get("text"), "a text part", here)
        marks.extend([None] * words.count(IMAGE_PLACEHOLDER))
        return words
    if kind in _IMAGE_PARTS:
        marks.append(_shown(part, here))
        return IMAGE_PLACEHOLDER
    known = ", ".join(map(repr, (*_TEXT_PARTS, *_IMAGE_PARTS)))
    raise RowError(f"{here}: a content part has type {brief(repr(kind))}; known are {known}")


def _shown(part: Mapping[str, Any], here: str) -> Mark:
    image = image_in({key: part[key] for key in _IMAGE_KEYS if key in part}, here)
    index = part.get("index")
    if is_null(index):
        return image  # without one of its own, the photo stands in the row's image column
    if image is not None:
        raise RowError(f"{here}: an image part has a photo and an index; give one of them")
    if type(index) is float and index.is_integer():  # pandas, of a column with nulls
        index = int(index)
    if type(index) is not int or index < 0:
        raise RowError(f"{here}: an image part has the index {brief(repr(index))}, not a number from 0 on")
    return index


def _learned(said: Mapping[str, Any], role: Role, here: str) -> bool | None:
    """Return whether the turn is learned, by its weight; None if it has no weight."""
    found = only(said, WEIGHT, here)
    if found is None:
        return None
    name, value = found
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise RowError(f"{here}: has {name!r} {brief(repr(value))}; only 0 and 1, or false and true, are known")
    if value and role != "assistant":
        raise RowError(f"{here}: has {name!r} {value}, and is the {role}'s; only the assistant's turns are learned")
    return bool(value)


def _with_thought(words: str, role: Role, thought: tuple[str, Any], here: str) -> str:
    name, value = thought
    written = text(value, repr(name), here)
    if role != "assistant":
        raise RowError(f"{here}: has {name!r}, and is the {role}'s; only the assistant thinks")
    if "</think>" in words:
        raise RowError(f"{here}: has a thought in its text and another under {name!r}; give one of them")
    return f"<think>\n{written.strip(chr(10))}\n</think>\n\n{words}"


def row_images(row: Mapping[str, Any], where: str) -> list[ImageSource | None]:
    """Return the images of the row's `image` or `images`: paths or encoded bytes; None for an empty entry.

    Raises:
        RowError: both are given and differ, or a cell is not an image.
    """
    found = given(row, IMAGES)
    cells = [list(value) if isinstance(value, list | tuple) else [value] for _, value in found]
    if len(cells) == 2 and cells[0] != cells[1]:
        raise RowError(f"{where}: has 'image' and 'images', which differ; give one of them")
    return [image_in(cell, where) for cell in cells[0]] if cells else []


def unread_keys(said: Any, column: str) -> Iterator[str]:
    """Yield the keys of turns and of their parts that have a value and are not read."""
    turns = said if isinstance(said, list | tuple) else ()
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        yield from (f"{column}[].{k}" for k, v in turn.items() if k not in KNOWN_KEYS and not is_absent(v))
        for key in _SAID:
            parts = turn.get(key)
            for part in parts if isinstance(parts, list | tuple) else ():
                if isinstance(part, Mapping):
                    yield from (
                        f"{column}[].{key}[].{k}"
                        for k, v in part.items()
                        if k not in KNOWN_PART_KEYS and not is_absent(v)
                    )
