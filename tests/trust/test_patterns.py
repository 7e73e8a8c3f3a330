"""Regular expressions over texts of strangers take steps as the text has characters, not as its square."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backtracking import growth

import mmtune
from mmtune.evaluation.tasks.filters import FILTERS, without_instruction

SOURCE = Path(mmtune.__file__).parent
CALLS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}


# a text in which every mark that opens is closed, as what is looked for there is written by ourselves
CLOSED = {r"\[[^\]]*\]", "\ufdd0(.*?)\ufdd1"}


class Found(NamedTuple):
    """A pattern of the package, and how it is used."""

    source: str
    flags: int
    anchored: bool
    whole: bool  # whether the text has to end where it ends


def compiled(value: Any) -> Iterator[re.Pattern[str]]:
    """The patterns in a value of a module: itself, or in tuples, lists and dicts."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | set | frozenset):
        for inner in value:
            yield from compiled(inner)
    elif isinstance(value, dict):
        yield from compiled(list(value.values()))


def methods(tree: ast.AST, name: str) -> set[str]:
    """What a module calls of one of its names."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == name}


def patterns() -> dict[Found, str]:
    """Every pattern of the package, and a module that has it."""
    found: dict[Found, str] = {}
    for module in pkgutil.walk_packages(mmtune.__path__, "mmtune."):
        loaded = importlib.import_module(module.name)
        tree = ast.parse(Path(str(loaded.__file__)).read_text(encoding="utf-8"))
        for name, value in list(vars(loaded).items()):
            used = methods(tree, name) if isinstance(value, re.Pattern) else {"search"}
            for pattern in compiled(value):
                anchored, whole = used <= {"match", "fullmatch"}, "fullmatch" in used
                found[Found(pattern.pattern, pattern.flags, anchored, whole)] = module.name
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {f"re.{name}" for name in CALLS} and isinstance(node.args[0], ast.Constant):
                # compiled ones were found by their names
                anchored, whole = called in ("re.match", "re.fullmatch", "re.compile"), called == "re.fullmatch"
                found.setdefault(Found(str(node.args[0].value), 0, anchored, whole), module.name)
    return found


EVERY = patterns()


@pytest.mark.parametrize("found", EVERY, ids=[f"{module}-{n}" for n, module in enumerate(EVERY.values())])
def test_work_grows_as_the_text(found: Found) -> None:
    source = f"(?:{found.source}\n)\\Z" if found.flags & re.VERBOSE else rf"(?:{found.source})\Z"
    times, text = growth(source if found.whole else found.source, found.flags, anchored=found.anchored)
    assert times < 7 or found.source in CLOSED, f"{found.source!r} on texts like {text!r}"


def test_they_are_found() -> None:
    assert len(EVERY) > 30
    assert {"mmtune.evaluation.tasks.filters", "mmtune.cli.shared.flag_errors"} <= set(EVERY.values())


@pytest.mark.parametrize(
    "source",
    [r"(?<!\s)\s*Please answer [^\n]*\s*$", r"\s+$", r"(a+)+$", r"(a|a)*b", r"<[^>]*>", r"\w+@\w+", r"\d+\.\d*x",
     r"a.*b", r" *\n *x", r"(?:\s*a?)*b", r"x*?x*?y"],
)  # fmt: skip
def test_the_count_sees_what_grows_faster(source: str) -> None:
    assert growth(source)[0] > 10


@pytest.mark.parametrize("source", [r"a+", r"[a-z]+|\d", r"^\s*x$", r"\[[^\[\]]*\]", r"(?<!\s)\s+x"])
def test_the_count_sees_what_does_not(source: str) -> None:
    assert growth(source)[0] < 5


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("Is it?\nPlease answer yes or no.", "Is it?"),
        ("Is it?  Please answer yes. \n\n ", "Is it?"),
        ("Please answer \n", ""),
        ("Please answer", "Please answer"),
        ("Please answer a\nwhat?", "Please answer a\nwhat?"),
        ("a Please answer b Please answer c", "a"),
        ("Please answer a\nPlease answer b\n", "Please answer a"),
        ("\u2003Is it?\r\nPlease answer it", "Is it?"),
        ("", ""),
    ],
)
def test_a_closing_instruction_is_that_of_the_last_line(question: str, left: str) -> None:
    assert without_instruction(question) == left
    assert re.sub(r"(?<!\s)\s*Please answer [^\n]*\s*$", "", question).strip() == left


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("pump", ["Please answer ", " ", "\n", "[", "<image", "A. ", "A. x\n", "x? ", ", is", "\t "])
def test_the_filters_of_task_files_end(name: str, pump: str) -> None:
    """Of a long text; one that grows as the square would take minutes, and the test with it."""
    for text in (pump * (200_000 // len(pump)) + "\nx", "Please answer " + pump * (200_000 // len(pump)) + "\nx"):
        try:
            FILTERS[name](text)
        except ValueError:  # no index of an option
            assert name == "letter"
