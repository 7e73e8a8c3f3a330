"""Who may import whom, and that the command itself is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmtune

ROOT = Path(mmtune.__file__).parent
CONTRIBUTING = ROOT.parent / "CONTRIBUTING.md"


def allowed() -> dict[str, set[str]]:
    """The folders of mmtune/, and which of the others each may import, as CONTRIBUTING.md says."""
    rows = re.findall(
        r"^\| `mmtune/(\w+)(?:/|\.py)` \|[^|]*\| ([^|]*) \|$", CONTRIBUTING.read_text(encoding="utf-8"), re.M
    )
    named = {folder: set(re.findall(r"`(\w+)`", cell)) for folder, cell in rows}
    return {folder: set(named) if cell == "all" else named[folder] for folder, cell in rows}


ALLOWED = allowed()
# fmt: off
HEAVY = [
    "bitsandbytes", "datasets", "evaluate", "gguf", "huggingface_hub", "jinja2", "jsonargparse",
    "lightning", "matplotlib", "numpy", "open_clip", "pandas", "peft", "PIL", "pyarrow", "pytorch_lightning",
    "requests", "rich", "safetensors", "sentencepiece", "timm", "tokenizers", "torch",
    "torchvision", "transformers", "yaml",
]
# fmt: on
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute names of what the source imports: at its top, inside functions, by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def parts_imported(source: str, package: str) -> set[str]:
    """The parts of mmtune (`data`, `models`, ...) that the source imports."""
    # the names that mmtune/__init__.py gives on demand stand for the parts that they come from
    lent = {"VisionLanguageModel": "generation", "evaluate": "evaluation", "fit": "training", "plan": "training"}
    lent |= dict.fromkeys(("Completion", "Prompt", "SamplingParams", "Turn"), "interfaces")
    names = (name.split(".") for name in imported_modules(source, package))
    return {lent.get(name[1], name[1]) for name in names if name[0] == "mmtune" and len(name) > 1}


def test_every_part_is_known() -> None:
    parts = {p.parent.name for p in ROOT.glob("*/__init__.py")} | {p.stem for p in ROOT.glob("*.py")} - {"__init__"}
    assert parts == set(ALLOWED), "say in CONTRIBUTING.md what the new part may import"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import mmtune.cli.main", {"cli"}),
        ("def f():\n    from mmtune.training import loss", {"training"}),
        ("from ..models import vlm", {"models"}),
        ("from .. import models", {"models"}),
        ("from . import collate", {"data"}),
        ("from mmtune import evaluate", {"evaluation"}),
        ("import importlib\nimportlib.import_module('mmtune.analysis.report')", {"analysis"}),
        ("import torch", set()),
    ],
)
def test_imports_of_all_kinds_are_seen(source: str, found: set[str]) -> None:
    assert parts_imported(source, "mmtune.data") == found


@pytest.mark.parametrize("path", [m for m in MODULES if m != Path("__init__.py")], ids=str)
def test_imports_go_one_way(path: Path) -> None:
    part = path.parts[0].removesuffix(".py")
    package = ".".join(["mmtune", *path.parts[:-1]])
    imported = parts_imported((ROOT / path).read_text(encoding="utf-8"), package)
    wrong = imported - {part} - ALLOWED.get(part, set())
    assert not wrong, f"mmtune/{path} imports {', '.join(sorted(wrong))}; {part} must not"


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(["mmtune", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def module_of(name: str, modules: set[str]) -> str:
    """The module that a name is imported from; "" where it is none of these."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def file_imports() -> dict[str, set[str]]:
    """By module of mmtune, the modules of mmtune that its file imports: inside functions and for types, too."""
    names = {name_of(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        package = ".".join(["mmtune", *path.parts[:-1]])
        found = imported_modules((ROOT / path).read_text(encoding="utf-8"), package)
        graph[name_of(path)] = {module_of(name, names) for name in found} - {name_of(path), ""}
    return graph


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of files that reach one another."""
    reached = {}
    for start in graph:
        seen: set[str] = set()
        ahead = [*graph[start]]
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += graph.get(name, ())
        reached[start] = seen
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]})


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [("a", "b", "c")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circles(file_imports()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import mmtune",
        "import mmtune.cli.main",
        "from mmtune.cli.main import main; assert main(['--help']) == 0",
        "from mmtune.cli.main import main; assert main(['--version']) == 0",
        "from mmtune.cli.main import main; assert main(['no-such-command']) == 2",
    ],
)
def test_the_command_itself_is_light_and_silent(code: str) -> None:
    """No library is imported and no socket opened before a command is chosen."""
    program = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise RuntimeError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
{code}
heavy = {HEAVY!r}
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_help_imports_no_library_as_a_module_of_its_own() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mmtune.cli.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "mmtune" in loaded
    assert not loaded & set(HEAVY)
