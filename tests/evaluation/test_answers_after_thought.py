"""Evaluations of models that think first: what is read, what is counted, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_models import SUITE, Scripted, small_data

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.interfaces import Completion, Prompt, SamplingParams


class Thinker(Scripted):
    """Gives its reply after a thought that weighs the other answer; does not finish thinking about some."""

    def __init__(self, thinking: str, finishes: Callable[[str], bool] = lambda prompt: True) -> None:
        super().__init__(lambda _: "yes")
        able = {"never": set(), "optional": {"thinking"}, "always": {"thinking", "always_thinks"}}[thinking]
        self.capabilities = frozenset({*Scripted.capabilities, *able})
        self.finishes, self.limits = finishes, []
        self.limits: list[int]

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        self.limits.append(params.thinking_budget)
        said = super().generate(prompts, params)
        if not params.thinking_budget:
            return said
        thought = "<think>\nNo? Then the best answer is no."
        return [
            [Completion(one.text, f"{thought}\n</think>")]
            if self.finishes(prompt.turns[-1].text)
            else [Completion("", thought, "thinking")]
            for prompt, (one,) in zip(prompts, said, strict=True)
        ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SUITE)
    return small_data(tmp_path)


def run(model: Any, data: Path, **options: Any) -> Any:
    return evaluate(model, data / "small.yaml", data_root=data, progress=False, **{"tasks": ["boolq"], **options})


def test_what_follows_the_thought_is_read(data: Path) -> None:
    model = Thinker("optional", finishes=lambda prompt: "number is 3." not in prompt)
    results = run(model, data, thinking_budget=64, out=data / "out")
    assert set(model.limits) == {64}
    assert model.options["response_prefix"]  # the model puts it before its answer
    samples = results.samples["boolq"]
    assert {s.prediction for s in samples} == {"yes", None}
    (unfinished,) = [s for s in samples if s.prediction is None]
    assert unfinished.response == "<think>\nNo? Then the best answer is no."
    assert unfinished.score == 0
    assert results.tasks["boolq"].unparsed == 1 / len(samples)
    kept = [json.loads(line)["response"] for line in (data / "out/samples/boolq.jsonl").read_text().splitlines()]
    assert kept == [s.response for s in samples]
    assert json.loads((data / "out/results.json").read_text())["tasks"]["boolq"]["thinking_budget"] == 64


def test_answers_with_and_without_thoughts_are_not_mixed_up(data: Path) -> None:
    model = Thinker("optional")
    for limit in (None, 64, 32, 64):
        run(model, data, thinking_budget=limit, out=data / "out")
    assert list(dict.fromkeys(model.limits)) == [0, 64, 32]
    before = len(model.limits)
    run(model, data, thinking_budget=32, out=data / "out")
    assert len(model.limits) == before  # stored


def test_a_task_file_may_ask_for_thoughts(data: Path) -> None:
    (data / "small.yaml").write_text("name: small\ntasks:\n  - {task: boolq, thinking_budget: 128}\n")
    model = Thinker("always")
    run(model, data)
    assert set(model.limits) == {128}
    with pytest.raises(UserError, match="thinks before every answer"):
        run(model, data, thinking_budget=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("thinking_budget: -1", "thinking_budget: must be at least 0, not -1"),
        ("thinking_budget: yes", "thinking_budget: must be a whole number"),
        ("thinking_budget: 9, answering: likelihood", "likelihood compares choices, before any thought"),
    ],
)
def test_wrong_task_files(data: Path, overrides: str, message: str) -> None:
    (data / "small.yaml").write_text("name: small\ntasks:\n  - {task: boolq, " + overrides + "}\n")
    with pytest.raises(UserError, match=message):
        load_suite(str(data / "small.yaml"))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Scripted(lambda _: "yes"), {"thinking_budget": 9}, "scripted has no way to think before it answers"),
        (Thinker("always"), {}, "say how long it may, with --thinking-budget 4096"),
        (Thinker("optional"), {"thinking_budget": -1}, "--thinking-budget -1: must be at least 0"),
        (
            Thinker("optional"),
            {"thinking_budget": 9, "answering": "likelihood"},
            "the choices of boolq are compared as they are, before any thought; use --answering generate",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(data: Path, model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(model, data, **options)
    assert model.asked == 0
