"""How a row of each known format becomes turns and photos.

A format is recognised by the columns of the row, not by the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.data.conversation import IMAGE_PLACEHOLDER, Role, Turn
from mmtune.data.images import Photo
from mmtune.errors import RowError, brief

Row = Mapping[str, Any]
Draft = tuple[list[Turn], list[Photo]]

# Completions written for GPT-3-style finetuning end with the stop marker spelled out. The template adds the
# model's own end marker, and the spelled one would be learnt as text.
_SPELLED_END_MARKERS = ("<|endoftext|>", "</s>")

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A known row format: its name, the columns that give it away, and its parser.

    One row may hold several conversations.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row, str], Iterator[Draft]]


def detect_format(row: Row, where: str) -> Format:
    """The format whose columns the row has.

    Raises:
        RowError: none matches.
    """
    for known in FORMATS:
        if all(row.get(column) is not None for column in known.columns):
            return known
    for known in FORMATS:
        if empty := [column for column in known.columns if row.get(column, "") is None]:
            raise RowError(f"{where}: {empty[0]!r} is null")
    shapes = "; ".join(f"{known.name}: {', '.join(known.columns)}" for known in FORMATS)
    found = brief(", ".join(map(str, row)), 200) or "(none)"
    raise RowError(f"{where}: columns {found} match no known format ({shapes})")


def _role(name: Any, where: str) -> Role:
    role = _ROLES.get(str(name).lower())
    if role is None:
        raise RowError(f"{where}: unknown speaker {brief(repr(name))}; known are {', '.join(_ROLES)}")
    return role


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where}: {column} is {type(value).__name__}, not text")
    return value


def _completion(value: Any, column: str, where: str) -> str:
    text = _text(value, column, where).rstrip()
    for marker in _SPELLED_END_MARKERS:
        text = text.removesuffix(marker)
    return text.strip()


def _photos(row: Row, where: str) -> list[Photo]:
    """The row's photos, from `image` or `images`: paths, encoded bytes, or {bytes, path} cells."""
    # many exporters write "" or [] where there is no photo
    value = row.get("images") or row.get("image") or []
    cells = value if isinstance(value, list | tuple) else [value]
    return [_photo(cell, where) for cell in cells]


def _photo(cell: Any, where: str) -> Photo:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str) and cell:
        return Path(cell)
    raise RowError(f"{where}: an image is {type(cell).__name__}; expected a path or the bytes of a picture")


def _mark_photos(turns: list[Turn], photos: list[Photo]) -> list[Turn]:
    """Put the photos before the first user's text where the row has photos but marks no place for them."""
    if not photos or any(IMAGE_PLACEHOLDER in turn.text for turn in turns):
        return turns
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns
    marks = "\n".join([IMAGE_PLACEHOLDER] * len(photos))
    return [*turns[:first], Turn("user", f"{marks}\n{turns[first].text}"), *turns[first + 1 :]]


def _parse_llava(row: Row, where: str) -> Iterator[Draft]:
    said = row["conversations"]
    if not isinstance(said, list | tuple):
        raise RowError(f"{where}: 'conversations' is {type(said).__name__}, not a list of turns")
    turns = []
    for number, turn in enumerate(said, 1):
        if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
            raise RowError(f"{where}: turn {number} of 'conversations' needs the keys 'from' and 'value'")
        turns.append(Turn(_role(turn["from"], where), _text(turn["value"], f"turn {number}", where)))
    if turns and turns[0].role == "assistant":
        turns = turns[1:]  # ShareGPT has such rows; LLaVA drops the greeting too
    if isinstance(row.get("system"), str) and not any(turn.role == "system" for turn in turns):
        turns.insert(0, Turn("system", row["system"]))
    # LLaVA's own files mark every photo, so a missing mark there is a mistake and not a habit
    yield turns, _photos(row, where)


def _parse_messages(row: Row, where: str) -> Iterator[Draft]:
    messages = row["messages"]
    if not isinstance(messages, list | tuple):
        raise RowError(f"{where}: 'messages' is {type(messages).__name__}, not a list")
    turns: list[Turn] = []
    photos: list[Photo] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise RowError(f"{where}: message {number} needs the keys 'role' and 'content'")
        content = message["content"]
        if isinstance(content, list | tuple):
            content = "".join(_content_part(part, photos, f"{where}: message {number}") for part in content)
        turns.append(Turn(_role(message["role"], where), _text(content, f"message {number}", where)))
    photos.extend(_photos(row, where))
    yield _mark_photos(turns, photos), photos


def _content_part(part: Any, photos: list[Photo], where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return _text(part.get("text"), "a text part", where)
    if kind == "image":
        cell = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
        if cell is not None:  # otherwise the photo stands in the row's own image column
            photos.append(_photo(cell, where))
        return IMAGE_PLACEHOLDER
    raise RowError(f"{where}: a content part has type {brief(repr(kind))}; known are 'text' and 'image'")


def _parse_alpaca(row: Row, where: str) -> Iterator[Draft]:
    yield from _instruction(row, row.get("input"), row["output"], where)


def _parse_self_instruct(row: Row, where: str) -> Iterator[Draft]:
    instances = row["instances"]
    if not isinstance(instances, list | tuple) or not all(isinstance(one, Mapping) for one in instances):
        raise RowError(f"{where}: 'instances' is not a list of objects with 'input' and 'output'")
    if not instances:
        raise RowError(f"{where}: 'instances' is empty, so there is nothing to learn from it")
    for instance in instances:
        yield from _instruction(row, instance.get("input"), instance.get("output"), where)


def _instruction(row: Row, given: Any, output: Any, where: str) -> Iterator[Draft]:
    question = _text(row["instruction"], "'instruction'", where)
    if given:
        question = f"{question}\n{_text(given, 'input', where)}"
    photos = _photos(row, where)
    turns = [Turn("user", question), Turn("assistant", _completion(output, "'output'", where))]
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, Turn("system", row["system"]))
    yield _mark_photos(turns, photos), photos


def _pair_parser(question: str, answer: str) -> Callable[[Row, str], Iterator[Draft]]:
    def parse(row: Row, where: str) -> Iterator[Draft]:
        photos = _photos(row, where)
        asked = Turn("user", _text(row[question], f"{question!r}", where).strip())
        answered = Turn("assistant", _completion(row[answer], f"{answer!r}", where))
        yield _mark_photos([asked, answered], photos), photos

    return parse


FORMATS: tuple[Format, ...] = (
    Format("LLaVA/ShareGPT", ("conversations",), _parse_llava),
    Format("chat messages", ("messages",), _parse_messages),
    Format("self-instruct", ("instruction", "instances"), _parse_self_instruct),
    Format("Alpaca", ("instruction", "output"), _parse_alpaca),
    Format("prompt/completion", ("prompt", "completion"), _pair_parser("prompt", "completion")),
    Format("prompt/response", ("prompt", "response"), _pair_parser("prompt", "response")),
    Format("question/answer", ("question", "answer"), _pair_parser("question", "answer")),
)
