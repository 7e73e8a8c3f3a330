"""Parsers that convert rows of each known format to turns and images.

A format is recognized by the columns of the row, not by the file's name. `columns.py` defines the other columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmtune.common.errors import RowError, brief
from mmtune.data.images import ImageSource
from mmtune.data.sources.columns import (
    HISTORY,
    IMAGES,
    INPUT,
    KEYS_OF_INSTANCES,
    PREFERENCE,
    REFUSED_COLUMNS,
    REFUSED_PARTS,
    SYSTEM,
    Meaning,
    given,
    is_absent,
    is_null,
    only,
    refuse,
    text,
)
from mmtune.data.sources.turns import Draft, read_turns, row_images, unread_keys
from mmtune.interfaces import Turn

Row = Mapping[str, Any]
Parsed = tuple[list[Turn], list[ImageSource]]

# Completions written for GPT-3-style finetuning end with the stop marker spelled out. The template adds the
# model's own end marker, and the spelled one would be learned as text.
_SPELLED_END_MARKERS = ("<|endoftext|>", "</s>")


@dataclass(frozen=True, slots=True)
class Format:
    """Known row format; one row may hold several conversations.

    Attributes:
        name: as shown to users.
        columns: the columns that identify it.
        parse: yields the turns and images of each conversation of a row.
        reads: the other columns that it reads.
        refused: the columns that no row may have, unless the format reads them.
        turns: those of its columns that may hold lists of turns.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row, str], Iterator[Parsed]]
    reads: tuple[Meaning, ...] = (SYSTEM, IMAGES)
    refused: tuple[Meaning, ...] = REFUSED_COLUMNS
    turns: tuple[str, ...] = ()

    @property
    def known(self) -> frozenset[str]:
        """Columns that the format reads."""
        return frozenset((*self.columns, *(name for meaning in self.reads for name in meaning.names)))


def parse_row(row: Row, where: str) -> tuple[Format, list[Parsed]]:
    """Return the format of a row, and the conversations it holds.

    Raises:
        RowError: no format matches, or the row cannot be read without a change of its meaning.
    """
    format_ = detect_format(row, where)
    refuse(row, format_.refused, where, but=format_.known)
    return format_, list(format_.parse(row, where))


def detect_format(row: Row, where: str) -> Format:
    """Return the format whose columns the row has.

    Raises:
        RowError: none matches.
    """
    for lacking in (is_absent, is_null):  # an empty column counts only if no format has all its columns filled
        for known in FORMATS:
            if not any(lacking(row.get(column)) for column in known.columns):
                return known
    refuse(row, [PREFERENCE], where)  # this message needs no list of formats
    for known in FORMATS:
        if empty := [column for column in known.columns if column in row and is_null(row[column])]:
            raise RowError(f"{where}: {empty[0]!r} is null")
    shapes = "; ".join(f"{known.name}: {', '.join(known.columns)}" for known in FORMATS)
    found = brief(", ".join(map(str, row)), 200) or "(none)"
    raise RowError(f"{where}: columns {found} match no known format ({shapes})")


def unread(row: Row, format_: Format) -> set[str]:
    """Return the columns of a row, and the keys of its turns, that have a value and are not read."""
    found = {str(name) for name, value in row.items() if name not in format_.known and not is_absent(value)}
    for column in format_.turns:
        found.update(unread_keys(row[column], column))
    if "instances" in format_.columns:
        filled = (key for one in row["instances"] for key, value in one.items() if not is_absent(value))
        found.update(f"instances[].{key}" for key in filled if key not in KEYS_OF_INSTANCES)
    return found


def _completion(value: Any, column: str, where: str) -> str:
    """Return an answer without its spelled end marker and trailing white space; leading white space stays."""
    answer = text(value, repr(column), where).rstrip()
    for marker in _SPELLED_END_MARKERS:
        answer = answer.removesuffix(marker)
    return answer.rstrip()


def _finished(draft: Draft, row: Row, where: str, *, mark_images: bool = True) -> Parsed:
    """Apply the rules that all formats share: the system column, a greeting, and the row's images."""
    if system := only(row, SYSTEM, where):
        draft.begin_with_system(text(system[1], repr(system[0]), where), where)
    draft.drop_greeting()
    images = row_images(row, where)
    if mark_images:
        draft.mark_images(sum(image is not None for image in images))
    return draft.turns, draft.images(images, where)


def _talk_parser(column: str, *, mark_images: bool) -> Callable[[Row, str], Iterator[Parsed]]:
    def parse(row: Row, where: str) -> Iterator[Parsed]:
        draft = Draft()
        read_turns(row[column], column, where, draft)
        yield _finished(draft, row, where, mark_images=mark_images)

    return parse


def _parse_alpaca(row: Row, where: str) -> Iterator[Parsed]:
    yield _instruction(row, row.get("input"), row["output"], where)


def _parse_self_instruct(row: Row, where: str) -> Iterator[Parsed]:
    instances = row["instances"]
    if not isinstance(instances, list | tuple) or not all(isinstance(one, Mapping) for one in instances):
        raise RowError(f"{where}: 'instances' is not a list of objects with 'input' and 'output'")
    if not instances:
        raise RowError(f"{where}: 'instances' is empty, so there is nothing to learn from it")
    for number, instance in enumerate(instances, 1):
        refuse(instance, REFUSED_COLUMNS, f"{where}: instance {number}")
        yield _instruction(row, instance.get("input"), instance.get("output"), where)


def _instruction(row: Row, given: Any, output: Any, where: str) -> Parsed:
    question = text(row["instruction"], "'instruction'", where)
    if given.strip() if isinstance(given, str) else not is_absent(given):
        given = text(given, "'input'", where)
        question = f"{question}\n{given}" if question.strip() else given
    draft = Draft()
    _add_history(row, where, draft)
    draft.add(Turn("user", question))
    draft.add(Turn("assistant", _completion(output, "output", where)))
    return _finished(draft, row, where)


def _pair_parser(question: str, answer: str) -> Callable[[Row, str], Iterator[Parsed]]:
    def parse(row: Row, where: str) -> Iterator[Parsed]:
        draft = Draft()
        _add_history(row, where, draft)
        draft.add(Turn("user", text(row[question], repr(question), where).rstrip()))
        draft.add(Turn("assistant", _completion(row[answer], answer, where)))
        yield _finished(draft, row, where)

    return parse


def _parse_prompt_completion(row: Row, where: str) -> Iterator[Parsed]:
    """Parse TRL's layout: both columns may be lists of turns; answers in a prompt list are not learned."""
    prompt, completion = row["prompt"], row["completion"]
    draft = Draft()
    if isinstance(prompt, list | tuple):
        read_turns(prompt, "prompt", where, draft, supervised=False)
    else:
        _add_history(row, where, draft)
        draft.add(Turn("user", text(prompt, "'prompt'", where).rstrip()))
    if isinstance(completion, list | tuple):
        read_turns(completion, "completion", where, draft)
    else:
        answer = _completion(completion, "completion", where)
        # the convention of GPT-3's finetuning: a space before the first word; more than one indent code
        lone = answer[:1] == " " and not answer[1:2].isspace()
        draft.add(Turn("assistant", answer[1:] if lone else answer))
    yield _finished(draft, row, where)


def _add_history(row: Row, where: str, draft: Draft) -> None:
    """Add the earlier turns of a row's `history`, as LLaMA-Factory and ms-swift write it."""
    if not (found := given(row, HISTORY)):
        return
    [(name, pairs)] = found
    if not isinstance(pairs, list | tuple):
        raise RowError(f"{where}: {name!r} is {type(pairs).__name__}, not a list of pairs of question and answer")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError(f"{where}: entry {number} of {name!r} is no pair of question and answer")
        question, answer = (text(said, f"entry {number} of {name!r}", where) for said in pair)
        draft.add(Turn("user", question))
        draft.add(Turn("assistant", answer))


_PAIR: dict[str, Any] = {"reads": (SYSTEM, IMAGES, HISTORY), "refused": (*REFUSED_COLUMNS, *REFUSED_PARTS)}


def _pair(question: str, answer: str) -> Format:
    return Format(f"{question}/{answer}", (question, answer), _pair_parser(question, answer), **_PAIR)


FORMATS: tuple[Format, ...] = (
    # LLaVA's own files mark every photo, so a missing mark there is a mistake and not a habit
    Format(
        "LLaVA/ShareGPT",
        ("conversations",),
        _talk_parser("conversations", mark_images=False),
        turns=("conversations",),
    ),
    Format("chat messages", ("messages",), _talk_parser("messages", mark_images=True), turns=("messages",)),
    Format("self-instruct", ("instruction", "instances"), _parse_self_instruct),
    Format(
        "Alpaca",
        ("instruction", "output"),
        _parse_alpaca,
        reads=(SYSTEM, IMAGES, HISTORY, INPUT),
        refused=(*REFUSED_COLUMNS, *REFUSED_PARTS),
    ),
    Format(
        "prompt/completion",
        ("prompt", "completion"),
        _parse_prompt_completion,
        turns=("prompt", "completion"),
        **_PAIR,
    ),
    _pair("prompt", "response"),
    _pair("question", "answer"),
    _pair("question", "response"),
    _pair("query", "response"),
)
