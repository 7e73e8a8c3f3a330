"""Meanings of columns of rows and keys of turns other than the text, and those that no row may have.

docs/data.md shows these tables, and tests/data/test_columns.py compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmtune.common.errors import RowError, brief


@dataclass(frozen=True, slots=True)
class Meaning:
    """Names that published layouts use for the same content, and a description of it."""

    names: tuple[str, ...]
    text: str


IMAGES = Meaning(("image", "images"), "the photos, in the order of their `<image>` marks")
SYSTEM = Meaning(("system", "system_prompt"), "the system prompt")
HISTORY = Meaning(("history",), "earlier questions with their answers, a list of pairs; these answers are learned too")
INPUT = Meaning(("input",), "what the instruction is about, on the line after it")

WEIGHT = Meaning(
    ("weight", "train", "trainable", "loss", "loss_scale", "loss_mask"),
    "1 or true: the answer is learned, as without it; 0 or false: the answer is read and not learned",
)
THOUGHT = Meaning(
    ("reasoning_content", "reasoning", "thinking"),
    "the thought before the answer, written and learned as `<think>…</think>`; an error in a template without thoughts",
)

PREFERENCE = Meaning(
    ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "preferred_output",
     "non_preferred_output"),
    "tells a better from a worse answer: a preference set",
)  # fmt: skip
REFUSED_COLUMNS = (
    PREFERENCE,
    Meaning(("label", "kto_tag"), "tells whether the answer is a good one: a preference set"),
    Meaning(("tools", "functions", "tool_calls", "function_call"), "is about tool calls, which are not read"),
    Meaning(("video", "videos", "audio", "audios"), "is video or sound, which is not read"),
    Meaning(("objects",), "holds boxes to be written into the text, which are not read"),
    Meaning(
        ("mask", "weight", "train", "trainable", "loss_mask", "loss_scale"),
        "weighs the whole row, which has no place here; turns take a `weight` of 0 or 1",
    ),
    Meaning(THOUGHT.names, "holds a thought; give it in a turn, or in the answer as `<think>…</think>`"),
    Meaning(("documents",), "holds texts that an answer rests on, which are not read; write them into the question"),
    Meaning(("chat_template_kwargs",), "sets options of the chat template, which the run sets for all rows"),
    Meaning(HISTORY.names, "holds earlier turns, for which this format has no place"),
)  # fmt: skip
REFUSED_PARTS = (
    Meaning(
        ("context", "passage", "choices", "options", "input", "instruction", "prompt", "question", "query"),
        "may be part of the question; write it into the question, or take the column away",
    ),
)
REFUSED_KEYS = (
    Meaning(("tool_calls", "function_call", "tool_call_id"), "is about tool calls, which are not read"),
    Meaning(("name",), "names the speaker, which is not written"),
    Meaning(("channel", "recipient"), "says where the text goes, which is not written"),
    Meaning(("refusal",), "is said in place of the content; write it as the content"),
    Meaning(("mask", "train_detail"), "says which parts are learned; `weight` 0 or 1 says it of the whole turn"),
    Meaning(("image", "images"), "holds photos of the turn; give those of all turns in the row's `images`"),
    Meaning(("video", "videos", "audio", "audios"), "is video or sound, which is not read"),
)
KEYS_OF_INSTANCES = frozenset(("input", "output"))
REFUSED_ROLES = Meaning(
    ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython"),
    "belongs to tool calls, which are not read",
)


def is_null(value: Any) -> bool:
    """Return whether a value is JSON's null, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and value != value)


def is_absent(value: Any) -> bool:
    """Return whether a cell has no value: null, empty, or a structure that Arrow filled with nulls."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, bytes):
        return not value
    if isinstance(value, Mapping):
        return all(map(is_absent, value.values()))
    if isinstance(value, list | tuple):  # no layout has lists in lists, so even empty ones count as a value
        return all(not isinstance(inner, list | tuple) and is_absent(inner) for inner in value)
    return is_null(value)


def given(row: Mapping[str, Any], meaning: Meaning) -> list[tuple[str, Any]]:
    """Return the names of a meaning that have a value in the row, with their values."""
    return [(name, value) for name in meaning.names if not is_absent(value := row.get(name))]


def refuse(row: Mapping[str, Any], meanings: Iterable[Meaning], where: str, but: Container[str] = ()) -> None:
    """Refuse a row or turn with content that would be dropped but changes its meaning, except the names in `but`.

    Raises:
        RowError: there is such content; the message names the column or key.
    """
    for meaning in meanings:
        for name, _ in given(row, meaning):
            if name not in but:
                raise RowError(f"{where}: has {name!r}, which {meaning.text}")


def only(row: Mapping[str, Any], meaning: Meaning, where: str) -> tuple[str, Any] | None:
    """Return the one value that a row has under any of the names, with its name; None if it has none.

    Raises:
        RowError: it has two values that differ.
    """
    found = given(row, meaning)
    if any(value != found[0][1] for _, value in found):
        names = " and ".join(repr(name) for name, _ in found)
        raise RowError(f"{where}: has {names}, which differ; give one of them")
    return found[0] if found else None


def text(value: Any, what: str, where: str) -> str:
    """Return the value if it is text.

    Raises:
        RowError: it is not text; `what` names the value in the message.
    """
    if isinstance(value, str):
        return value
    found = "null" if value is None else "NaN" if is_null(value) else type(value).__name__
    raise RowError(f"{where}: {what} is {found}, not text")


def finite_number(value: Any, what: str, where: str) -> float:
    """Convert a number, or text that spells one (as in all cells of CSV files), to a finite float.

    Raises:
        RowError: it is not a number, or not finite; `what` names the value in the message.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{where}: {what} is {brief(repr(value))}, not a finite number, which the objective reads there")
    return number
