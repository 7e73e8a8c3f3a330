"""A verifier of a user's own: task files name it, and samples keep what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_models import SHORT_ANSWERS, Scripted, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.interfaces import Verdict
from mmtune.verify.answer_verifier import AnswerVerifier
from mmtune.verify.registry import VERIFIERS

TASK = f"{SHORT_ANSWERS}verifier: close\n"


class Close(AnswerVerifier):
    """1 for a gold number, less for numbers near it."""

    name = "close"

    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:
        if not answer.isdecimal():
            return Verdict(0.0, answer, error="no number to compare")
        missed = min(abs(int(answer) - int(gold)) for gold in golds)
        return Verdict(max(0.0, 1 - missed / 10), answer, {"missed_by": missed})


def score(folder: Path, task: str, rows: list[dict[str, Any]], model: Any) -> Results:
    write_rows(folder, "toy/toy", None, "test", rows)
    (folder / "toy.yaml").write_text(task)
    return evaluate(model, folder / "toy.yaml", data_root=folder, out=folder / "out")


def test_a_task_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": said, "answer": "8"} for said in ("8", "5", "eight", "")]
    with pytest.raises(UserError, match=r"toy.yaml: verifier: unknown 'close'"):
        score(tmp_path, TASK, rows, Scripted(lambda asked: asked))
    monkeypatch.setitem(VERIFIERS, "close", Close)
    results = score(tmp_path, TASK, rows, Scripted(lambda asked: asked))
    kept = [json.loads(line) for line in (tmp_path / "out/samples/toy.jsonl").read_text().splitlines()]
    assert [sample["score"] for sample in kept] == [1, 0.7, 0, 0]
    assert [sample["details"] for sample in kept] == [{"missed_by": 0}, {"missed_by": 3}, None, None]
    assert [sample["error"] for sample in kept] == [None, None, "no number to compare", None]
    toy = results.tasks["toy"]
    assert (toy.score, toy.unparsed, toy.failed) == (0.425, 0.25, 1)
    assert "toy: row 2 counts as wrong: no number to compare (`error` in samples/toy.jsonl)" in capsys.readouterr().err


@pytest.mark.parametrize("verifier", sorted(VERIFIERS))
@pytest.mark.parametrize("answer", ["letter", "yes_no"])
def test_the_likeliest_choice_is_judged_by_its_label(tmp_path: Path, verifier: str, answer: str) -> None:
    options = ["no", "yes"] if answer == "yes_no" else ["b", "the text", "B"]  # texts that could be read as labels
    rows = [{"question": "?", "options": options, "answer": gold} for gold in ("B", "yes", "A")]
    rows = [row for row in rows if (row["answer"] == "yes") == (answer == "yes_no")]
    task = TASK.replace("answer: short", f"answer: {answer}\nanswering: likelihood\nextract: [option_text]")
    task = task.replace("close", verifier) + ('references: "[answer] * 10"\n' if verifier == "vqa" else "")
    task += "options: options\n" if answer == "letter" else ""
    model = Scripted(lambda _: "", like=lambda _, choice: -float(choice not in ("b", "yes")))
    samples = score(tmp_path, task, rows, model).samples["toy"]
    label = "yes" if answer == "yes_no" else "A"
    assert [(s.prediction, s.score) for s in samples] == [(label, float(row["answer"] == label)) for row in rows]
