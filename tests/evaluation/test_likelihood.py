"""Answering by the likelihood of the choices."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_models import BOOLQ, OPENBOOKQA, POPE, Scripted, picture, small_data, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.evaluation.score.scoring import likeliest
from mmtune.interfaces import Completion, Prompt, SamplingParams

pytestmark = pytest.mark.near_ties  # a script's figures are equal on purpose, whatever rounds

TASK = """
name: toy
version: 1
modality: language
dataset: {path: toy/toy, config: null, split: test}
prompt: "{{ question }}"
options: options
target: "{{ answer }}"
answer: letter
max_tokens: 4
metrics: [accuracy]
"""
ROWS = [
    {"question": f"Q{n}", "options": ["long " * 5, "b", ""], "answer": "AB"[n % 2], "words": ["x", "y", "z"]}
    for n in range(4)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path, "toy/toy", None, "test", ROWS)
    return small_data(tmp_path)


def score(data: Path, model: Scripted, extra: str = "", **options: Any) -> Results:
    (data / "toy.yaml").write_text(TASK + extra)
    return evaluate(model, data / "toy.yaml", data_root=data, progress=False, **options)


@given(st.lists(st.tuples(st.none() | st.floats(-99, 0), st.text(min_size=1, max_size=9)), max_size=6), st.booleans())
def test_the_likeliest(given: list[tuple[float | None, str]], normalised: bool) -> None:
    figures, choices = [figure for figure, _ in given], [choice for _, choice in given]
    best = likeliest(figures, choices, normalised=normalised)
    if best is None:
        assert figures == [None] * len(figures)
        return
    value = [None if f is None else f / len(c) if normalised else f for f, c in given]
    known = [v for v in value if v is not None]
    assert value[best] == max(known)
    assert value.index(value[best]) == best, "of equals the first"


def per_letter(prompt: str, choice: str) -> float:
    """The sum favours the short choice, the mean per character the long one."""
    return -1.0 * len(choice) if len(choice) > 1 else -1.5


def test_the_sum_and_the_sum_per_character(data: Path) -> None:
    model = Scripted(lambda _: pytest.fail("generated"), like=per_letter)
    by_sum = score(data, model, "answering: likelihood\n")
    assert model.compared == [["long " * 5, "b"]] * 4, "a blank choice is not asked"
    assert [sample.prediction for sample in by_sum.samples["toy"]] == ["B"] * 4
    assert [sample.response for sample in by_sum.samples["toy"]] == ["b"] * 4
    assert by_sum.samples["toy"][0].loglikelihoods == (-25.0, -1.5, None)
    by_mean = score(data, model, "answering: likelihood_norm\n")
    assert [sample.prediction for sample in by_mean.samples["toy"]] == ["A"] * 4
    for results in (by_sum, by_mean):
        metrics = results.tasks["toy"].metrics
        assert (metrics["accuracy"], metrics["accuracy_sum"], metrics["accuracy_norm"]) == (0.5, 0.5, 0.5)
    assert by_sum.tasks["toy"].answering == "likelihood"


def test_nobody_can_tell_choices_with_the_same_text_apart(data: Path) -> None:
    rows = [{"question": "Q", "options": options, "answer": "A"} for options in (["b", "b", "cc"], ["a", "cc", "cc"])]
    write_rows(data, "toy/toy", None, "test", rows)
    results = score(data, Scripted(lambda _: ""), answering="likelihood")
    assert [sample.prediction for sample in results.samples["toy"]] == [None, "A"]
    assert results.tasks["toy"].unparsed == results.tasks["toy"].metrics["accuracy_sum"] == 0.5


def test_the_flag_goes_before_the_task_file(data: Path) -> None:
    model = Scripted(lambda _: "A")
    assert score(data, model, "answering: likelihood\n", answering="generate").samples["toy"][0].loglikelihoods is None
    results = score(data, model, answering="likelihood")
    assert results.samples["toy"][0].loglikelihoods is not None
    assert model.options["response_prefix"] == ""


@pytest.mark.parametrize(
    ("choices", "asked"),
    [("letters", ["A", "B", "C"]), ("words", ["x", "y", "z"]), ('["1", "2", "3"]', ["1", "2", "3"])],
)
def test_choices_of_the_task_file(data: Path, choices: str, asked: list[str]) -> None:
    model = Scripted(lambda _: "")
    score(data, model, f"choices: '{choices}'\n", answering="likelihood")
    assert model.compared[0] == asked


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("choices: other", r"toy.yaml: choices: .* has no column 'other'"),
        ("choices: words[:2]", r"choices: row 0: 2 texts for 3 valid answers"),
        ("choices: question", r"choices: row 0: must give a list of texts"),
        ("choices: '[['", r"choices: not a jinja2 template"),
        ("answering: guess", r"answering: unknown 'guess'"),
    ],
)
def test_mistakes_in_the_task_file(data: Path, extra: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(data, Scripted(lambda _: ""), extra, answering="likelihood")


def test_a_figure_that_is_no_number_is_never_the_likeliest(data: Path, tmp_path: Path) -> None:
    broken = Scripted(
        lambda _: "", like=lambda prompt, choice: math.nan if "Q0" in prompt or choice == "b" else -math.inf
    )
    results = score(data, broken, answering="likelihood", out=tmp_path / "out")
    assert {sample.prediction for sample in results.samples["toy"]} == {None}
    assert results.tasks["toy"].unparsed == 1
    lines = (tmp_path / "out/samples/toy.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail)["loglikelihoods"] == [None, None, None]


def suite(folder: Path, *tasks: str) -> Path:
    (folder / "some.yaml").write_text(f"name: some\ntasks: [{', '.join(tasks)}]\n")
    return folder / "some.yaml"


def knows(prompt: str, choice: str) -> float:
    """As likely as it is right."""
    for row in BOOLQ:
        if prompt.endswith(f"\n{row['question']}?"):
            return -float(choice != ("yes" if row["answer"] else "no"))
    for row in POPE:
        if row["question"] in prompt:
            return -float(choice != row["answer"])
    row = next(row for row in OPENBOOKQA if f"{row['question_stem']}..." in prompt)
    return -float(choice.replace("'", "") != row["choices"]["text"]["ABCD".index(row["answerKey"])].replace("'", ""))


def test_tasks_answered_in_the_same_way_add_up(data: Path, tmp_path: Path) -> None:
    mixed = suite(data, "boolq", "openbookqa", "realworldqa")
    for name in ("boolq", "openbookqa"):
        options: Any = {"out": tmp_path / "out", "answering": "likelihood", "progress": False}
        results = evaluate(Scripted(lambda _: "yes"), mixed, data_root=data, tasks=[name], **options)
    assert list(results.tasks) == ["boolq", "openbookqa"]


def test_letters_yes_and_no_and_photos(data: Path) -> None:
    model = Scripted(lambda _: pytest.fail("generated"), like=knows)
    shown = suite(data, "boolq", "openbookqa", "pope")
    results = evaluate(model, shown, data_root=data, answering="likelihood", progress=False)
    assert {name: task.score for name, task in results.tasks.items()} == dict.fromkeys(
        ("boolq", "openbookqa", "pope"), 1
    )
    assert results.tasks["pope"].cost["tower_passes"] == len(POPE)
    assert model.options["response_prefix"] == 'The best answer is "'
    assert results.tasks["pope"].metrics["yes_ratio"] == sum(row["answer"] == "yes" for row in POPE) / len(POPE)


def test_a_photo_that_does_not_decode_is_wrong_by_every_measure(data: Path) -> None:
    bad = {**POPE[0], "image": {"bytes": b"", "path": "x"}}
    write_rows(data, "lmms-lab/POPE", None, "test", [bad, *POPE[1:]])
    model = Scripted(lambda _: "", like=knows)
    results = evaluate(model, "pope", data_root=data, answering="likelihood", progress=False)
    metrics = results.tasks["pope"].metrics
    assert metrics["accuracy"] == metrics["accuracy_sum"] == metrics["accuracy_norm"] == (len(POPE) - 1) / len(POPE)


def test_free_answers_cannot_be_compared(data: Path) -> None:
    row = {"id": "1", "question": "What?", "answer": "tree", "imageId": "7"}
    write_rows(data, "lmms-lab/GQA", "testdev_balanced_instructions", "testdev", [row])
    write_rows(data, "lmms-lab/GQA", "testdev_balanced_images", "testdev", [{"id": "7", "image": picture()}])
    mixed = suite(data, "boolq", "gqa", "realworldqa")
    with pytest.raises(UserError, match=r"the answers of gqa, realworldqa are free.*; give --tasks boolq"):
        evaluate(Scripted(lambda _: ""), mixed, data_root=data, answering="likelihood", progress=False)
    with pytest.raises(UserError, match=r"use --answering generate"):
        evaluate(Scripted(lambda _: ""), "gqa", data_root=data, answering="likelihood", progress=False)
    with pytest.raises(UserError, match=r"--answering: unknown 'likelyhood'; did you mean 'likelihood'"):
        evaluate(Scripted(lambda _: ""), "gqa", data_root=data, answering="likelyhood", progress=False)


class OnlyGenerates:
    name, fingerprint = "half a model", "1"

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        return [[Completion("yes")] * params.n for _ in prompts]


def test_any_object_that_can_what_is_needed_will_do(data: Path) -> None:
    model: Any = OnlyGenerates()
    assert evaluate(model, "boolq", data_root=data, progress=False).tasks["boolq"].score == 0.5
    with pytest.raises(
        UserError, match=r"half a model has no 'loglikelihood' among its capabilities, but task boolq compares choices"
    ):
        evaluate(model, "boolq", data_root=data, answering="likelihood", progress=False)
