"""Rows without a label, with marks of photos in their text or with odd options; models that return too little."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_models import SHORT_ANSWERS, Scripted, picture, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.interfaces import Completion

LETTERS = SHORT_ANSWERS.replace("answer: short", "answer: letter\noptions: options\nanswering: likelihood").replace(
    "{{ answer }}", "{{ answer | letter }}"
)


def score(folder: Path, task: str, rows: list[dict[str, Any]], model: Any = None) -> Results:
    write_rows(folder, "toy/toy", None, "test", rows)
    (folder / "toy.yaml").write_text(task)
    return evaluate(model or Scripted(lambda _: "A"), folder / "toy.yaml", data_root=folder)


@pytest.mark.parametrize(
    ("target", "label"),
    [("{{ answer }}", None), ("{{ answer }}", math.nan), ("{{ 'yes' if answer else 'no' }}", None),
     ("{{ answer | letter }}", None), ("{{ (answer | int) | letter }}", None)],
)  # fmt: skip
def test_a_row_without_a_label_is_named(tmp_path: Path, target: str, label: Any) -> None:
    rows = [{"question": "a", "answer": 1.0}, {"question": "b", "answer": label}]
    task = SHORT_ANSWERS.replace('"{{ answer }}"', f'"{target}"')
    if "letter" in target:
        task = task.replace("answer: short", "answer: letter\noptions: \"['x', 'y']\"")
    with pytest.raises(UserError, match=r"toy.yaml: target: row 1: there is no gold answer: answer is null"):
        score(tmp_path, task, rows)
    assert score(tmp_path, task + 'filter: "answer == 1"\n', rows).tasks["toy"].n == 1


def test_null_is_no_word(tmp_path: Path) -> None:
    rows = [{"question": "a", "passage": "x", "answer": "y"}, {"question": "b", "passage": None, "answer": "y"}]
    task = SHORT_ANSWERS.replace("{{ question }}", "{{ passage }} {{ question }}")
    with pytest.raises(UserError, match=r"toy.yaml: prompt: row 1: a value is null; write {{ column or '' }}"):
        score(tmp_path, task, rows)
    results = score(tmp_path, task.replace("{{ passage }}", "{{ passage or '' }}") + "group_by: passage\n", rows)
    assert [(s.prompt, s.group) for s in results.samples["toy"]] == [("x a", "x"), ("b", None)]


def test_a_mark_in_the_text_of_a_row_is_no_photo(tmp_path: Path) -> None:
    rows = [{"question": "Which tag, <image>?", "tags": ["<image>", "<b>"], "answer": 0, "photo": picture()}]
    task = LETTERS.replace("language", "vision\nimages: [photo]").replace("options: options", "options: tags")
    for prompt in (
        "{{ question }} {{ options | option_lines }}",
        "<image> {{ question }} {{ options | option_lines }}",
    ):
        model = Scripted(lambda _: "", like=lambda _, choice: -float(choice != "<image>"))
        (sample,) = score(tmp_path, task.replace("{{ question }}", prompt), rows, model).samples["toy"]
        assert sample.prompt.count("<image>") == 1
        assert "Which tag, image?" in sample.prompt
        assert (model.compared, sample.prediction) == ([["<image>", "<b>"]], "A")


@pytest.mark.near_ties  # options that are the same have the same figure
def test_options_that_are_empty_or_the_same_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [["a", "b"], ["a", "a "], ["", "b"], ["b", "b"]]
    rows = [{"question": "q", "options": some, "answer": 0} for some in options]
    score(tmp_path, LETTERS, rows)
    told = capsys.readouterr().err
    assert "toy: an option is empty in row 2\n" in told
    assert "toy: options are the same in 2 rows (rows 1, 3); an answer in their words is unparsed\n" in told


X = Completion("x")
GENERATED = [
    (lambda n: [[X]] * (n - 1), r"task toy: generate of odd gave 1 lists of completions for 2 prompts"),
    (lambda n: [[X]] * (n + 1), r"gave 3 lists of completions for 2 prompts"),
    (lambda n: None, r"generate of odd gave None; it must give a list of 2 lists of completions"),
    (lambda n: "xy", r"gave 'xy'; it must give a list of 2 lists of completions"),
    (lambda n: [[X], None], r"gave None for row 1; it must give a list of one mmtune.Completion"),
    (lambda n: ["x", "x"], r"gave 'x' for row 0; it must give a list of one mmtune.Completion"),
    (lambda n: [["x"], ["x"]], r"gave \['x'\] for row 0"),
    (lambda n: [[X, X], [X]], r"gave \[Completion.* for row 0; it must give a list of one mmtune.Completion"),
    (lambda n: [[X], [Completion(b"x")]], r"for row 1; its texts must be strings"),  # type: ignore[arg-type]
]
FIGURES = [
    (lambda n: [[-1.0, -2.0]], r"task toy: loglikelihood of odd gave 1 lists of log-likelihoods for 2 prompts"),
    (lambda n: None, r"loglikelihood of odd gave None; it must give a list of 2 lists"),
    (lambda n: [[-1.0], [-1.0, -2.0]], r"gave \[-1.0\] for row 0; it must give a list of 2 numbers, one per choice"),
    (lambda n: [-1.0, -2.0], r"gave -1.0 for row 0; it must give a list of 2 numbers"),
    (lambda n: [[-1.0, -2.0], None], r"gave None for row 1"),
    (lambda n: [[-1.0, None], [-1.0, -2.0]], r"gave \[-1.0, None\] for row 0; it must give numbers"),
    (lambda n: [[-1.0, "-2"], [-1.0, -2.0]], r"gave \[-1.0, '-2'\] for row 0; it must give numbers"),
]


class Odd:
    name, fingerprint, capabilities = "odd", "1", ("loglikelihood",)

    def __init__(self, returned: Callable[[int], Any]) -> None:
        self.returned = returned

    def generate(self, prompts: list[str], *_: Any, **__: Any) -> Any:
        return self.returned(len(prompts))

    def loglikelihood(self, prompts: list[str], *_: Any, **__: Any) -> Any:
        return self.returned(len(prompts))


ROWS = [{"question": q, "options": ["a", "b"], "answer": 0} for q in "ab"]


@pytest.mark.parametrize(("returned", "message"), GENERATED)
def test_answers_that_are_none(tmp_path: Path, returned: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(tmp_path, SHORT_ANSWERS, ROWS, Odd(returned))


@pytest.mark.parametrize(("returned", "message"), FIGURES)
def test_figures_that_are_none(tmp_path: Path, returned: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(tmp_path, LETTERS, ROWS, Odd(returned))


def test_arrays_are_lists_of_numbers(tmp_path: Path) -> None:
    results = score(tmp_path, LETTERS, ROWS, Odd(lambda n: np.array([[-2.0, -1.0]] * n)))
    assert [sample.prediction for sample in results.samples["toy"]] == ["B", "B"]
    texts = Odd(lambda n: iter([[Completion(text)] for text in "xy"]))
    assert [sample.response for sample in score(tmp_path, SHORT_ANSWERS, ROWS, texts).samples["toy"]] == ["x", "y"]


def test_figures_that_are_no_number_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = score(tmp_path, LETTERS, ROWS, Odd(lambda n: [[math.nan, -1.0], [-math.inf, -1.0]]))
    assert [sample.prediction for sample in results.samples["toy"]] == ["B", "B"]
    line = "toy: the model gave a log-likelihood that is no finite number in 2 rows (rows 0, 1); such a choice is never"
    assert line in capsys.readouterr().err
