"""Every way a task or suite file can be wrong is told in one line that names file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmtune.common.errors import UserError
from mmtune.common.files import resource_folder
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import load_task, task_from

TASK: dict[str, Any] = {
    "name": "mine",
    "version": 1,
    "modality": "language",
    "dataset": {"path": "me/mine", "config": None, "split": "test"},
    "prompt": "{{ question }}\n{{ options | option_lines }}",
    "options": "choices",
    "target": "{{ answer | letter }}",
    "answer": "letter",
    "max_tokens": 4,
    "metrics": ["accuracy"],
}


def test_the_smallest_task() -> None:
    task = task_from(TASK, "mine.yaml")
    assert task.columns_by_key()["prompt"] == {"question"}
    assert task.columns_by_key()["options"] == {"choices"}
    assert (task.response_prefix, task.stop, task.extract, task.limit) == ("", (), (), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt": "x"}, r"mine.yaml: unknown key 'promt'; did you mean 'prompt'\?"),
        ({"prompt": None}, r"mine.yaml: key 'prompt' is missing"),
        ({"prompt": 3}, r"mine.yaml: prompt: must be text, not 3"),
        ({"prompt": "{{ question"}, r"mine.yaml: prompt: not a jinja2 template"),
        ({"prompt": "{{ question | option_line }}"}, r"mine.yaml: prompt: .*did you mean 'option_lines'"),
        ({"options": "choices["}, r"mine.yaml: options: not a jinja2 template"),
        ({"options": {"a": 1}}, r"mine.yaml: options: must be an expression or a list of columns"),
        ({"options": None}, r"mine.yaml: options: missing"),
        ({"filter": "a b"}, r"mine.yaml: filter: not a jinja2 template"),
        ({"name": "../x"}, r"mine.yaml: name: '../x' may hold only"),
        ({"version": "1"}, r"mine.yaml: version: must be a whole number"),
        ({"version": True}, r"mine.yaml: version: must be a whole number"),
        ({"max_tokens": 0}, r"mine.yaml: max_tokens: must be at least 1"),
        ({"limit": 0}, r"mine.yaml: limit: must be at least 1"),
        ({"modality": "visual"}, r"mine.yaml: modality: unknown 'visual'"),
        ({"modality": "vision"}, r"mine.yaml: images: missing"),
        ({"answer": "leter"}, r"mine.yaml: answer: unknown 'leter'; did you mean 'letter'"),
        (
            {"extract": ["first_claus"]},
            r"mine.yaml: extract: unknown 'first_claus'; did you mean 'first_clause'",
        ),
        ({"extract": [1]}, r"mine.yaml: extract: every entry must be text"),
        ({"stop": [""]}, r"mine.yaml: stop: an empty text"),
        ({"metrics": []}, r"mine.yaml: metrics: is empty"),
        ({"verifier": "vqa"}, r"mine.yaml: references: missing, and `verifier: vqa` needs them"),
        ({"verifier": "exakt"}, r"mine.yaml: verifier: unknown 'exakt'; did you mean 'exact'"),
        ({"metrics": ["math_accuracy"]}, r"mine.yaml: metrics: math_accuracy is the mean score of `verifier: math`"),
        ({"references": "a b"}, r"mine.yaml: references: not a jinja2 template"),
        ({"metrics": ["accuracy", "evalute"]}, r"mine.yaml: metrics: unknown 'evalute'; did you mean 'evaluate'"),
        ({"metrics": ["f1", {"f1": {"positive": "A"}}]}, r"mine.yaml: metrics: 'f1' is named twice"),
        ({"metrics": ["acuracy"]}, r"mine.yaml: metrics: unknown 'acuracy'; did you mean 'accuracy'"),
        ({"metrics": [{"f1": {"positiv": "A"}}]}, r"mine.yaml: metrics: f1 has no argument 'positiv'"),
        ({"metrics": [{"f1": {"positive": True}}]}, r"mine.yaml: metrics: f1: positive must be text"),
        ({"metrics": [["f1"]]}, r"mine.yaml: metrics: every entry must be a name"),
        ({"dataset": "me/mine"}, r"mine.yaml: dataset: must be a mapping"),
        ({"dataset": {"path": "me/mine"}}, r"mine.yaml: dataset: key 'split' is missing"),
        ({"dataset": {"path": "../../etc", "split": "x"}}, r"mine.yaml: dataset: path: .* is no hub id"),
        ({"dataset": {"path": "a/b", "splt": "x", "split": "x"}}, r"mine.yaml: dataset: unknown key 'splt'"),
        (
            {"dataset": {"path": "a/b", "split": "x", "images": {"config": "c"}}},
            r"mine.yaml: dataset: images: key 'key' is missing",
        ),
    ],
)
def test_bad_tasks(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_from({**TASK, **change}, "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"bad.yaml, line 1: not valid YAML"),
        ("name: x\nname: y\n", r"bad.yaml, line 2: .*'name' is given twice"),
        ("- a", r"bad.yaml: must be a mapping"),
        ("", r"bad.yaml: must be a mapping"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_task(str(file))
    with pytest.raises(UserError, match=message):
        load_suite(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bad.yaml"):
        load_suite(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("[]", r"suite.yaml: tasks: is empty"),
        ("[bolq]", r"unknown task 'bolq'; did you mean 'boolq'"),
        ("[boolq, boolq]", r"suite.yaml: tasks: 'boolq' is listed twice"),
        ("[3]", r"suite.yaml: tasks: every entry must be a name"),
        ("[{task: boolq, splt: x}]", r"suite.yaml: .*boolq.yaml: unknown key 'splt'"),
        ("[{task: boolq, name: x}]", r"suite.yaml: tasks: boolq: 'name' cannot be set here; use `as`"),
        ("[{task: boolq, limit: 0}]", r"suite.yaml: .*boolq.yaml: limit: must be at least 1"),
        ("[gone.yaml]", r"gone.yaml: no such task file"),
    ],
)
def test_bad_suites(tmp_path: Path, tasks: str, message: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(f"name: s\ntasks: {tasks}\n")
    with pytest.raises(UserError, match=message):
        load_suite(file)


def test_a_suite_may_rename_override_and_bring_tasks_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "suite.yaml").write_text(
        "name: s\nprotocol: mlan\ntasks:\n- own/mine.yaml\n- boolq\n"
        "- {task: openbookqa, as: openbookqa_dev, split: validation, limit: 7, response_prefix: ''}\n"
    )
    suite = load_suite(tmp_path / "suite.yaml")
    own, _, changed = suite.tasks
    assert (suite.protocol, own.name, changed.name) == ("mlan", "mine", "openbookqa_dev")
    assert (changed.dataset.split, changed.dataset.config, changed.limit) == ("validation", "main", 7)
    assert changed.response_prefix == ""
    assert [task.name for task in suite.select(["openbookqa_dev", "mine"])] == ["mine", "openbookqa_dev"]
    with pytest.raises(UserError, match=r"--tasks: 'min' is not in suite s; did you mean 'mine'"):
        suite.select(["min"])
    with pytest.raises(UserError, match=r"--tasks: names no task"):
        suite.select([])


def test_a_task_is_a_suite_of_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TASK))
    assert [task.name for task in load_suite(tmp_path / "mine.yaml").tasks] == ["mine"]
    assert [task.name for task in load_suite("rte").tasks] == ["rte"]


def test_the_hash_of_a_definition() -> None:
    task = task_from(TASK, "a.yaml")
    assert task.definition_hash() == task_from(TASK, "b.yaml").definition_hash()
    assert task.definition_hash() != task_from({**TASK, "response_prefix": "x"}, "a.yaml").definition_hash()


def test_all_shipped_files_load_and_say_what_they_are() -> None:
    folder = resource_folder("eval_suites")
    for file in folder.glob("tasks/*.yaml"):
        assert load_task(str(file)).name == file.stem
        assert file.read_text().startswith("#")
    for file in folder.glob("*.yaml"):
        assert load_suite(file).name == file.stem
