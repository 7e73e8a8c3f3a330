"""Damaged task files and suites, templates made to harm, and rows that do not fit: refused by file, key and row."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fuzz_cases import Cases, numbered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import altered, damaged, written

from mmtune.common.errors import UserError
from mmtune.common.files import resource_folder
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import task_from

SHIPPED = sorted(resource_folder("eval_suites").rglob("*.yaml"))
TASK: dict[str, Any] = {
    "name": "mine",
    "version": 1,
    "modality": "language",
    "dataset": {"path": "me/mine", "split": "test"},
    "prompt": "{{ question }}\n{{ options | option_lines }}",
    "target": "{{ label | letter }}",
    "answer": "letter",
    "options": "choices",
    "filter": "label != 9",
    "group_by": "kind",
    "response_prefix": "The answer is",
    "max_tokens": 8,
    "stop": ["\n"],
    "extract": ["leading_letter"],
    "metrics": ["accuracy", {"f1": {"positive": "A"}}],
    "limit": 50,
}
ROWS = [{"question": f"What is {n}?", "choices": ["one", "two"], "label": n % 2, "kind": "a"} for n in range(6)]


@numbered(60, 1500)
def test_damaged_yaml(numbers: range, cases: Cases, tmp_path: Path) -> None:
    for number in numbers:
        random_ = random.Random(f"yaml {number}")
        whole = random_.choice(SHIPPED)
        file = tmp_path / "suite.yaml"
        file.write_bytes(damaged(whole.read_bytes(), random_))
        cases.run(f"yaml {number}: {whole.name}", partial(load_suite, file), names=[file, "unknown task"])


def asked(file: Path, root: Path) -> int:
    """How many questions the tasks of a file ask."""
    count = 0
    for task in load_suite(file).tasks:
        renderer = Renderer(task, "blind")
        for number, row in load_rows(task, root, limit=None, keep=renderer.keeps).rows:
            question = renderer.question(number, row)
            assert isinstance(question.prompt, str)
            assert question.target
            count += 1
    return count


@pytest.fixture
def root(tmp_path: Path) -> Path:
    file = tmp_path / "root" / "hub" / "me" / "mine" / "default" / "test.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return tmp_path / "root"


def test_what_is_damaged_is_sound_before(tmp_path: Path, root: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    assert asked(tmp_path / "task.yaml", root) == len(ROWS)


@numbered(150, 3000)
def test_task_files_with_altered_values(numbers: range, cases: Cases, tmp_path: Path, root: Path) -> None:
    file = tmp_path / "task.yaml"
    for number in numbers:
        random_ = random.Random(f"task {number}")
        data = written(altered(TASK, random_), random_)  # JSON is YAML
        file.write_bytes(data)
        cases.run(f"task {number}: {data[:600]!r}", partial(asked, file, root), names=[file, root])


@numbered(50, 600)
def test_suites_with_altered_values(numbers: range, cases: Cases, tmp_path: Path, root: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    entries = ["task.yaml", {"task": "task.yaml", "as": "other", "limit": 2, "split": "test"}]
    whole = {"name": "s", "description": "d", "protocol": "blind", "tasks": entries}
    file = tmp_path / "suite.yaml"
    for number in numbers:
        random_ = random.Random(f"suite {number}")
        data = written(altered(whole, random_), random_)
        file.write_bytes(data)
        cases.run(f"suite {number}: {data[:400]!r}", partial(asked, file, root), names=[tmp_path, "unknown task"])


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(n)}: &{chr(n)} [{','.join([f'*{chr(n - 1)}'] * 9)}]\n" for n in range(ord("b"), ord("k"))
)
HARMFUL = {
    "aliases of aliases": LAUGHS,
    "itself": "&a [*a]",
    "itself, in a key": "name: s\ntasks: &a [{task: *a}]",
    "code": "!!python/object/apply:os.system ['touch was-run']",
    "a list as a key": "? [a, b]\n: c",
    "a mapping as a key": "? {a: b}\n: c",
    "no such day": "a: 2026-13-45",
    "a merge of itself": "a: &a {<<: *a}",
    "many digits": f"a: {'9' * 5000}",
    "base 60": f"a: {':'.join(['59'] * 3000)}",
    "deep": "[" * 1000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(400)),
    "tabs": "a:\tb\n\t- c",
    "NUL": "a: \0",
    "several documents": "a: 1\n---\nb: 2",
    "empty": "",
    "nothing": "null",
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_yaml_made_to_harm(kind: str, cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "suite.yaml"
    file.write_text(HARMFUL[kind])
    assert isinstance(cases.run(kind, partial(load_suite, file), names=[file]), UserError)
    assert not (tmp_path / "was-run").exists()


LOOP = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"
EXPRESSIONS = [
    "9 ** (9 ** 9)", "'a' * 100000000000", "[0] * 100000000000", "100000000000 * 'a'", "(1, 2) * 'a'", "1.5 * 'a'",
    "'%99999999999d' % 1", "'{:99999999999}'.format(1)", "'a'.center(100000000000)", "'a' | center(100000000000)",
    "'a'.ljust(100000000000)", "'x' | indent(100000000000)", "range(100000000000) | list", "lipsum(1000)", "cycler",
    "''.__class__.__mro__[1].__subclasses__()", "question.__init__.__globals__", "question | attr('__class__')",
    "question[100000000000000000000000000000]", "1 / 0", "1 << 100000000000", "question % 1", "self", "loop",
    "question | batch(0) | list", "question | int(base=99)", "question | round", "question | tojson",
    "question | letter",
    "question | wordwrap(0)", "question | format(1, 2)", "choices | map('letter') | list", "choices | clean_hellaswag",
    "choices | sum", "choices | random", "label | option_lines", "(" * 3000 + "1" + ")" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("key", ["prompt", "target", "options", "filter", "group_by"])
def test_templates_made_to_harm(key: str, cases: Cases, tmp_path: Path, root: Path) -> None:
    file = tmp_path / "task.yaml"
    bare = key in ("options", "filter", "group_by")
    for source in [LOOP, *(one if bare else "{{ " + one + " }}" for one in EXPRESSIONS)]:
        file.write_text(yaml.safe_dump({**TASK, key: source}))
        cases.run(f"{key}: {source[:100]}", partial(asked, file, root), names=[file, root])


WORDS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "question",
    "|",
    "letter",
    "if",
    "for",
    "in",
    "(",
    ")",
    "[",
    "'",
    "1",
    "**",
    "~",
    ".",
    "end",
    "set",
    "=",
    "macro",
    "raw",
    "<image>",
    "include",
]


@pytest.mark.parametrize("most", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_templates_of_any_text(most: int, cases: Cases, tmp_path: Path) -> None:
    pieces = st.sampled_from([*WORDS, " ", "\n"])

    @settings(max_examples=most, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join))
    def anything(source: str) -> None:
        def rendered() -> None:
            renderer = Renderer(task_from({**TASK, "prompt": source}, "mine.yaml"), "blind")
            renderer.question(0, ROWS[0])

        cases.run(repr(source), rendered, names=["mine.yaml"])

    anything()


@numbered(80, 1200)
def test_rows_that_do_not_fit(numbers: range, cases: Cases, tmp_path: Path, root: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    file = root / "hub" / "me" / "mine" / "default" / "test.parquet"
    whole = file.read_bytes()
    for number in numbers:
        random_ = random.Random(f"rows {number}")
        case = f"rows {number}"
        if random_.random() < 0.5:
            file.write_bytes(damaged(whole, random_))
        else:
            rows = [dict(row) for row in ROWS]
            column = random_.choice(list(ROWS[0]))
            value = random_.choice([None, 7, -1, 2.5, float("nan"), "", "x" * 5000, [], ["a"], {"a": 1}, True, b"\xff"])
            for row in rows:
                row[column] = value
            pq.write_table(pa.Table.from_pylist(rows), file)
            case = f"{case}: {column} is {str(value)[:40]}"
        cases.run(case, partial(asked, tmp_path / "task.yaml", root), names=[file, tmp_path / "task.yaml"])
