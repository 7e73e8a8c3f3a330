"""What the documentation tells users to type is there: commands, flags, make targets, files, code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import command_lines
import pytest
import yaml

from mmtune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELLS = {"bash", "sh", "console"}
_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
_SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", ">&", "<"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    where: str
    language: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks, with file and line."""
    text = document.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{document.relative_to(ROOT)}:{line}", match[1], match[2])


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands of a shell block; of a console block only what follows the prompt."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.lstrip().startswith("$ "):
                continue
            line = line.lstrip().removeprefix("$ ")
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in _SEPARATORS:
                command.append(word)
                continue
            while command and re.fullmatch(r"[A-Za-z_]\w*=.*", command[0]):
                del command[0]  # a variable for this command alone
            if command:
                yield command
            command = []
            if word in (">", ">>", ">&", "<"):
                break  # a file's name follows


def targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shell_cases() -> list[tuple[str, list[str]]]:
    return [
        (block.where, command)
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language in SHELLS
        for command in commands(block)
    ]


def of(program: str) -> list[object]:
    """Test cases: the arguments of every call of a program, with where it stands."""
    return [
        pytest.param(command[1:], id=f"{where} {' '.join(command)[:60]}")
        for where, command in shell_cases()
        if Path(command[0]).name == program
    ]


def test_shell_blocks_are_taken_apart() -> None:
    text = "A=1 mmtune eval --model x \\\n  --limit 3 # few\ncd y && make test | tee log\n"
    text += "pip install 'a[b]>=1' > log\nmmtune data x:y@z,[1] --a='b c'\n"
    found = list(commands(Block("", "bash", text)))
    assert found == [
        ["mmtune", "eval", "--model", "x", "--limit", "3"],
        ["cd", "y"],
        ["make", "test"],
        ["tee", "log"],
        ["pip", "install", "a[b]>=1"],
        ["mmtune", "data", "x:y@z,[1]", "--a=b c"],
    ]
    assert list(commands(Block("", "console", "$ mmtune --version\n0.1.0\n"))) == [["mmtune", "--version"]]


@pytest.mark.parametrize("arguments", of("mmtune"))
def test_a_command_line_parses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # the config of a run that the reader has done stands for a shipped one
    previous = ["", *arguments]
    known = [
        "quickstart" if before == "--config" and word.startswith("runs/") else word
        for before, word in zip(previous, arguments, strict=False)
    ]
    command_lines.check(known)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["--no-such-flag"],
        ["fit", "--config", "quickstart", "--model.no_such_flag", "1"],
        ["fit", "--config", "no_such_config"],
        ["quickstart", "--no-such-flag"],
        ["quickstart", "--budget", "enormous"],
    ],
)
def test_a_wrong_command_line_would_be_seen(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        command_lines.check(arguments)


@pytest.mark.parametrize("arguments", of("make"))
def test_a_make_target_exists(arguments: list[str]) -> None:
    wanted = {word for word in arguments if "=" not in word and not word.startswith("-")}
    assert wanted <= targets()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_code_compiles_and_links_lead_somewhere(document: Path) -> None:
    assert document.is_file(), f"{document.name} is missing"
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, block.where, "exec")
        elif block.language in ("yaml", "yml"):
            yaml.safe_load(block.text)
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    missing = [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


ROOMS = re.findall(r"^\*\*`(\w+)/`: (.*?)(?=^\*\*|^## )", (ROOT / "docs/architecture.md").read_text(), re.M | re.S)


def test_the_architecture_has_every_room() -> None:
    assert {name for name, _ in ROOMS} == {path.parent.name for path in (ROOT / "mmtune").glob("*/__init__.py")}


@pytest.mark.parametrize(("room", "text"), ROOMS, ids=[name for name, _ in ROOMS])
def test_the_architecture_names_every_module(room: str, text: str) -> None:
    modules = {path.name for path in (ROOT / "mmtune" / room).rglob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", text)) == modules


def test_the_files_that_the_architecture_names_are_there() -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / "docs/architecture.md").read_text())
    assert named
    assert not [path for path in named if not ((ROOT / path).is_file() or (ROOT / "mmtune" / path).is_file())]


def test_every_promise_of_security_has_its_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    written = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    promised = text.partition("## What is promised")[2].partition("## What is not promised")[0]
    for promise in promised.split("\n- ")[1:]:
        named = set(re.findall(r"`(test_\w+)`", promise))
        assert named, promise
        assert named <= written
    for file in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file


def test_a_newcomers_changes_have_a_place() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| to add | open |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", line) for line in table.splitlines() if line.startswith("| a")]
    assert len(rows) >= 20
    assert [path for paths in rows for path in paths if not (ROOT / path).is_file()] == []
    assert all(rows)
