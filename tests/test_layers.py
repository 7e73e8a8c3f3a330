"""Files that include others: what they stand for, what is refused, and that the command line sees the whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import parse_training

from mmtune.common.errors import UserError
from mmtune.common.files import resource_folder
from mmtune.common.layers import layers_of, read_layered
from mmtune.common.masking import masked_text
from mmtune.common.schema import validate
from mmtune.evaluation.tasks.suite import Suite
from mmtune.evaluation.tasks.task import load_task, task_from
from mmtune.experiments.recorded_inputs import inputs_of

GOLDENS: dict[str, Any] = json.loads(Path(__file__).with_name("task_goldens.json").read_text(encoding="utf-8"))


def write(folder: Path, **texts: str) -> Path:
    """Write files of these names; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def test_a_file_is_laid_over_what_it_includes(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        top="include: [one, two.yaml]\na: {x: 3}\n",
        one="a: {x: 1, y: 1, z: 1}\nlist: [1, 2]\nb: {c: 1}",
        two="include: [three]\na: {y: 2}\nlist: [3]",
        three="a: {y: 0, w: 0}\nb: null",
    )
    assert read_layered(file, "configs") == {"a": {"x": 3, "y": 2, "z": 1, "w": 0}, "list": [3], "b": None}
    assert [layer.path.stem for layer in layers_of(file, "configs")] == ["one", "three", "two", "top"]


def test_one_layer_may_be_included_twice(tmp_path: Path) -> None:
    file = write(tmp_path, top="include: [one, two]", one="include: [base]", two="include: [base]\nb: 2", base="a: 1")
    assert read_layered(file, "configs") == {"a": 1, "b": 2}


def test_another_class_does_not_get_the_arguments_of_the_first(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        top="include: [one]\nlogger: {class_path: B, init_args: {y: 2}}",
        one="logger: {class_path: A, init_args: {x: 1}}",
    )
    assert read_layered(file, "configs") == {"logger": {"class_path": "B", "init_args": {"y": 2}}}


def test_shipped_layers_are_found_from_anywhere(tmp_path: Path) -> None:
    file = write(tmp_path, mine="include: [layers/lora]\nmodel: {lora: {r: 8}}")
    assert read_layered(file, "configs")["model"]["lora"] == {"r": 8, "alpha": 256}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a": "include: [b]"}, r"a\.yaml: include: b: no file beside it and no name in mmtune's configs; "),
        ({"a": "include: [layers/lore]"}, r"did you mean 'layers/lora'\?"),
        ({"a": "include: [a]"}, r"a\.yaml: include: .*a\.yaml: includes this file in its turn; remove one"),
        ({"a": "include: [b]", "b": "include: [a]"}, r"b\.yaml: include: .*a\.yaml: includes this file in its turn"),
        ({"a": "include: [b]", "b": "[1]"}, r"a\.yaml: include: .*b\.yaml: holds no keys and values"),
        ({"a": "include: [b]", "b": "x: ["}, r"a\.yaml: include: .*b\.yaml, line 1: not valid YAML"),
        ({"a": "include: b", "b": ""}, r"a\.yaml: include: must be a list of names, not 'b'; write include: \[NAME\]"),
        ({"a": "include: [1]"}, r"a\.yaml: include: must be a list of names, not \[1\]"),
        ({"a": "include: []"}, r"a\.yaml: include: must be a list of names, not \[\]"),
        (
            {n: f"include: [{m}, {m}]" for n, m in zip("abcdefg", "bcdefgh", strict=True)} | {"h": "out: x"},
            r"include: more than 100 files are included",
        ),
    ],
)
def test_what_cannot_be_included_is_named_with_who_includes_it(
    texts: dict[str, str], said: str, tmp_path: Path
) -> None:
    file = write(tmp_path, **texts)
    with pytest.raises(UserError, match=said):
        read_layered(file, "configs")
    with pytest.raises(UserError, match=f"--config .*{said}"):
        parse_training(["fit", "--config", str(file)])


def test_the_command_line_sees_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, mine="include: [layers/from_vicuna_7b, layers/lora, layers/mlan_text]\nout: runs/mine")
    config = parse_training(["fit", "--config", str(file), "--config", "ddp", "--model.lora.r", "16"]).config.fit
    assert (config.out, config.model.base, config.model.lora.r) == ("runs/mine", "runs/vicuna_7b_align", 16)
    assert (config.trainer.devices, config.model.learning_rate) == (8, 2e-4)
    with pytest.raises(SystemExit):
        parse_training(["fit", "--config", str(file), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["train"]["text"] == ["data/MLAN/MLAN_80k.json"]
    assert "include" not in printed


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("model: {learning_rat: 1}", r"--config .*under\.yaml: model\.learning_rat: no such key; did you mean"),
        ("data: {max_length: many}", r"--config .*under\.yaml: data\.max_length many: must be a whole number"),
        ("trainer: {logger: {class_path: os.system}}", r"--config .*under\.yaml: trainer\.logger"),
    ],
)
def test_a_complaint_names_the_layer_that_it_is_about(layer: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path, mine="include: [under]\nout: runs/mine", under=layer)
    with pytest.raises(UserError, match=said):
        parse_training(["fit", "--config", str(file)])


def test_secrets_of_a_layer_are_masked_though_another_lies_over_it(tmp_path: Path) -> None:
    file = write(tmp_path, mine="include: [under]\nmodel: {api_key: other}", under="model: {api_key: hunter2hunter2}")
    with pytest.raises(UserError):
        parse_training(["fit", "--config", str(file)])
    assert "hunter2hunter2" not in masked_text("the key hunter2hunter2")


def test_a_changed_layer_is_another_input(tmp_path: Path) -> None:
    file = write(tmp_path, mine="include: [under]", under="a: 1", suite="tasks: [boolq]\nname: one\n")

    def recorded() -> str:
        return inputs_of([], [str(file)], str(tmp_path / "suite.yaml"), None, None)[f"config {file}"]

    before = recorded()
    write(tmp_path, under="# a comment\na: 1")
    assert recorded() == before
    write(tmp_path, under="a: 2")
    assert recorded() != before


def test_a_task_includes_what_it_shares(tmp_path: Path) -> None:
    file = write(tmp_path, mine="include: [tasks/boolq]\nname: mine\ndataset: {split: train}\n")
    mine, boolq = load_task(str(file)), load_task("boolq")
    assert (mine.name, mine.dataset.split, mine.dataset.path) == ("mine", "train", boolq.dataset.path)
    assert (mine.response_prefix, mine.stop) == (boolq.response_prefix, boolq.stop)
    write(tmp_path, mine="include: [task/boolq]\nname: mine")
    with pytest.raises(UserError, match=r"mine\.yaml: include: task/boolq: no file .* did you mean 'tasks/boolq'"):
        load_task(str(file))
    write(tmp_path, mine="include: [tasks/boolq]\nname: mine\nstop: ['x']\nstop: ['y']")
    with pytest.raises(UserError, match="given twice"):
        load_task(str(file))


@pytest.mark.parametrize("name", GOLDENS)
def test_a_shipped_task_or_suite_stands_for_the_same_settings_as_ever(name: str) -> None:
    assert read_layered(resource_folder("eval_suites") / f"{name}.yaml", "eval_suites") == GOLDENS[name]


def test_every_shipped_task_and_suite_has_goldens() -> None:
    folder = resource_folder("eval_suites")
    files = [file for place in (folder, folder / "tasks") for file in place.glob("*.yaml")]
    assert set(GOLDENS) == {file.relative_to(folder).with_suffix("").as_posix() for file in files}


def test_a_task_that_says_no_more_than_it_must_stands_for_the_same_settings_as_ever() -> None:
    least = {"name": "least", "version": 1, "modality": "language", "dataset": {"path": "a/b", "split": "test"}}
    least |= {"prompt": "{{ q }}", "target": "{{ a }}", "answer": "short", "max_tokens": 8, "metrics": ["accuracy"]}
    assert dataclasses.asdict(task_from(least, "least.yaml")) == least | {
        "where": "least.yaml",
        "dataset": {"path": "a/b", "config": None, "split": "test", "revision": None, "images": None},
        "references": None,
        "images": (),
        "options": None,
        "answering": "generate",
        "choices": None,
        "filter": None,
        "response_prefix": "",
        "thinking_budget": 0,
        "stop": (),
        "extract": (),
        "verifier": "exact",
        "metrics": ({"name": "accuracy", "arguments": {}},),
        "group_by": None,
        "limit": None,
    }
    suite = validate(Suite, {"name": "one", "tasks": ["boolq"]}, "one.yaml", context=Path("one.yaml"))
    assert (suite.description, suite.protocol, suite.tasks) == ("", "blind", (load_task("boolq"),))
