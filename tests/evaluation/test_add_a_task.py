"""docs/add-a-task.md: its files are made and its commands run as they stand, and its tables are complete."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from mmtune.cli.main import main
from mmtune.evaluation.score.external import ExternalMetric
from mmtune.evaluation.score.metrics import METRICS
from mmtune.evaluation.tasks.filters import FILTERS
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import ImageJoin, Task
from mmtune.verify.extraction import STEPS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "add-a-task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


@pytest.fixture(scope="module")
def run(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees, of two blocks."""
    from mmtune.generation.generator import VisionLanguageModel
    from mmtune.models.spec import ModelSpec, VisionOptions

    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    folder = tmp_path_factory.mktemp("run") / "model"
    VisionLanguageModel.assemble(ModelSpec(str(llama), tower, template="chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def walked(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a reader did all that the page says."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, text in BLOCKS:
            if language in ("python", "yaml"):
                name = text.splitlines()[0].removeprefix("# ")
                assert re.fullmatch(r"\w+\.(py|yaml)", name), "the first line of a file's block is its name"
                Path(name).write_text(text, encoding="utf-8")
            elif language == "bash":
                for command in text.splitlines():
                    do(shlex.split(command.replace("RUN", str(run))))
    return folder


def do(words: list[str]) -> None:
    if words[0] == "python":
        runpy.run_path(words[1])
    elif words[0] == "mmtune":
        assert main(words[1:]) == 0, words
    else:
        subprocess.run(words, check=True, capture_output=True)


def results(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "results.json").read_text())["tasks"]


def test_every_command_was_run() -> None:
    assert sum(command.startswith("mmtune eval") for command in COMMANDS) == 4
    assert {command.split()[0] for command in COMMANDS} == {"python", "mmtune", "head"}


def test_the_first_try_asked_five_rows_and_kept_them(walked: Path) -> None:
    found = results(walked / "try")["colours"]
    assert (found["n"], found["metric"], found["failed"]) == (5, "accuracy", 0)
    samples = [json.loads(line) for line in (walked / "try/samples/colours.jsonl").read_text().splitlines()]
    choose = "What colour is this? Choose the best option from below:\nA: red\nB: green\nC: blue"
    assert [sample["prompt"] for sample in samples] == [f"<image>\n{choose}"] * 5
    assert [sample["target"] for sample in samples] == ["A", "B", "C", "A", "B"]
    assert len({sample["image"] for sample in samples}) == 3


def test_the_options_were_compared(walked: Path) -> None:
    found = results(walked / "try_likelihood")["colours"]
    assert (found["answering"], found["unparsed"]) == ("likelihood", 0)
    assert found["metrics"]["accuracy_sum"] == found["score"]
    assert "accuracy_norm" in found["metrics"]


def test_the_suite_ran_both_entries(walked: Path) -> None:
    found = results(walked / "mine")
    assert {name: task["n"] for name, task in found.items()} == {"colours": 12, "colours_twice": 3}


def test_the_metric_of_someone_else_was_computed(walked: Path) -> None:
    found = results(walked / "named")["colours_named"]
    assert found["metrics"]["evaluate:share_named"] == pytest.approx(1 - found["unparsed"])
    assert set(found["metrics"]["groups"]) == {"red", "green", "blue"}


def test_it_is_refused_without_the_flag(
    walked: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(walked)
    command = next(command for command in COMMANDS if "--trust-metric-code" in command)
    assert main(shlex.split(command.replace("RUN", str(run)).replace(" --trust-metric-code", ""))[1:]) == 2
    assert (
        "share_named.py would run this Python file; if you trust it, give --trust-metric-code"
        in capsys.readouterr().err
    )


def table(heading: str) -> set[str]:
    """The names in the first column of the table under a heading."""
    section = DOCUMENT.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_tables_list_exactly_what_there_is() -> None:
    assert table("All keys") == {field.name for field in dataclasses.fields(Task)} - {"where"}
    assert table("Filters in templates") == set(FILTERS)
    assert table("Extraction steps") == set(STEPS)
    assert table("Metrics") == {*METRICS, "evaluate"}


def test_nested_keys_are_explained() -> None:
    nested = {"path", "config", "split", "revision", "images"} | {f.name for f in dataclasses.fields(ImageJoin)}
    given = {field.name for field in dataclasses.fields(ExternalMetric)} - {"code"}
    for key in nested | given:
        assert re.search(rf"`[^`]*\b{key}\b[^`]*`", DOCUMENT), key


def test_the_task_on_the_page_is_a_suite_of_one(tmp_path: Path) -> None:
    text = next(text for language, text in BLOCKS if language == "yaml")
    (tmp_path / "colours.yaml").write_text(text)
    assert [task.name for task in load_suite(tmp_path / "colours.yaml").tasks] == [yaml.safe_load(text)["name"]]
