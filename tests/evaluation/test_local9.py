"""Every row of the sets that can be had without the hub, as it is asked and scored."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_models import Scripted

from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results, Sample
from mmtune.evaluation.tasks.filters import Protocol
from mmtune.evaluation.tasks.render import Question, Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import Task, load_task
from mmtune.interfaces import Completion
from mmtune.verify.extraction import parse
from mmtune.verify.vqa import VqaVerifier

LOCAL9 = [task.name for task in load_suite("local9").tasks]
OTHERS = ["nlvr", "easy_vqa", "easy_vqa_shape", "easy_vqa_colour", "easy_vqa_presence"]


def questions(task: Task, data: Path, protocol: Protocol = "blind") -> list[Question]:
    if not any((data / "hub" / task.dataset.path).rglob(f"{task.dataset.split}.parquet")):
        pytest.skip(f"needs {task.dataset.path} in ../shared/data")
    renderer = Renderer(task, protocol)
    return [renderer.question(*row) for row in load_rows(task, data, limit=None, keep=renderer.keeps).rows]


def test_the_suite() -> None:
    tasks = load_suite("local9").tasks
    assert LOCAL9 == ["race", "openbookqa", "boolq", "hellaswag", "scienceqa", "pope", "vqav2", "vsr", "mathvision"]
    assert [task.modality for task in tasks] == ["language"] * 4 + ["vision"] * 5


@pytest.mark.parametrize("protocol", ["blind", "mlan"])
@pytest.mark.parametrize("name", [*LOCAL9, *OTHERS])
def test_every_row_is_asked_and_its_gold_answer_is_right(name: str, protocol: Protocol, shared_data: Path) -> None:
    task = load_task(name)
    rows = questions(task, shared_data, protocol)
    for question in rows:
        assert "{{" not in question.prompt
        assert "<image1>" not in question.prompt
        assert question.prompt.count("<image>") == len(question.images)
        if question.options:
            assert len(question.options) >= 2
            assert question.prompt.endswith(f"{'ABCDEFG'[len(question.options) - 1]}: {question.options[-1]}")
        if name == "hellaswag":
            assert "[title]" not in question.prompt
        earned = task.make_verifier().verify(Completion(f'{question.target}"'), question.reference).score
        assert earned == 1 or name == "vqav2"  # of ten people, fewer than three may agree
        assert earned > 0
    if task.images and name != "scienceqa":
        assert all(question.images for question in rows)


def test_the_text_of_the_right_option_is_right_whatever_punctuation_it_holds(shared_data: Path) -> None:
    task = load_task("mathvision")
    for question in questions(task, shared_data):
        option = question.options["ABCDE".index(question.target)]
        if option.upper() not in "ABCDE":  # else it is the letter of an option itself
            for said in (option, f"{question.target}: {option}", f"({question.target}) {option}"):
                assert parse(said, task.extract, "letter", question.options) == question.target


def test_blind_prompts_are_the_same_whatever_the_gold_answer(shared_data: Path) -> None:
    task = load_task("vqav2")
    renderer = Renderer(task, "blind")
    for number, row in load_rows(task, shared_data, limit=None).rows:
        prompts = {renderer.question(number, {**row, "multiple_choice_answer": a}).prompt for a in ("yes", "no", "dog")}
        assert len(prompts) == 1


def test_vqa_accuracy_of_real_answers_is_that_of_answers_compared_as_they_are(shared_data: Path) -> None:
    """People's answers in VQAv2 were normalised before they were published; ours must leave them as they are."""
    draw, compare = random.Random(0), VqaVerifier().compare
    for question in questions(load_task("vqav2"), shared_data):
        for answer in {*question.references, draw.choice(["yes", "2", "dog"])}:
            matches = question.references.count(answer)
            others = len(question.references) - matches
            formula = (matches * min((matches - 1) / 3, 1) + others * min(matches / 3, 1)) / len(question.references)
            assert compare(answer, question.references).score == pytest.approx(formula)
            assert compare(f" The {answer.upper()}.", question.references).score == pytest.approx(formula)


SAID = {
    "A": "A",
    'B"': "B",
    "c.": "C",
    "D: it": "D",
    "Yes.": "yes",
    'no"': "no",
    "TRUE": "yes",
    "false, as": "no",
    "7": None,
}


@pytest.fixture(scope="module")
def scored(shared_data: Path) -> Results:
    """The whole suite, answered by a model that throws dice."""
    for task in load_suite("local9").tasks:
        questions(task, shared_data)

    def reply(prompt: str) -> str:
        return random.Random(prompt).choice(list(SAID))

    return evaluate(Scripted(reply), "local9", data_root=shared_data, progress=False)


def rates(samples: list[Sample]) -> dict[str, Any]:
    """POPE's figures (Li et al., 2023, section 4.1) from the raw responses."""
    said = [SAID[sample.response] for sample in samples]
    gold = [sample.target for sample in samples]
    hits = sum(s == g == "yes" for s, g in zip(said, gold, strict=True))
    precision, recall = hits / said.count("yes"), hits / gold.count("yes")
    return {
        "accuracy": sum(s == g for s, g in zip(said, gold, strict=True)) / len(gold),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": said.count("yes") / len(said),
    }


def test_pope_has_its_figures_overall_and_by_category(scored: Results, shared_data: Path) -> None:
    samples, found = scored.samples["pope"], dict(scored.tasks["pope"].metrics)
    groups = found.pop("groups")
    assert found == pytest.approx(rates(samples))
    assert set(groups) == {"random", "popular", "adversarial"}
    for category, figures in groups.items():
        part = [sample for sample in samples if sample.group == category]
        assert figures == pytest.approx({"n": len(part), **rates(part)})


def test_scienceqa_is_split_by_photo(scored: Results) -> None:
    samples, groups = scored.samples["scienceqa"], scored.tasks["scienceqa"].metrics["groups"]
    seen: dict[str, Callable[[Sample], bool]] = {
        "with a photo": lambda sample: sample.image is not None,
        "without a photo": lambda sample: sample.image is None,
    }
    assert set(groups) == set(seen)
    for name, belongs in seen.items():
        right = [sample.score for sample in samples if belongs(sample)]
        assert groups[name] == pytest.approx({"n": len(right), "accuracy": sum(right) / len(right)})


def test_scores_unparsed_and_averages(scored: Results) -> None:
    for name in ("race", "openbookqa", "boolq", "vsr"):
        said = [(SAID[s.response], s.target) for s in scored.samples[name]]
        assert scored.tasks[name].score == pytest.approx(sum(a == b for a, b in said) / len(said))
        valid = ("yes", "no") if name in ("boolq", "vsr") else "ABCD"
        assert scored.tasks[name].unparsed == pytest.approx(
            sum(a is None or a not in valid for a, _ in said) / len(said)
        )
    scores = [task.score for task in scored.tasks.values()]
    assert scored.averages == pytest.approx(
        {"language": sum(scores[:4]) / 4, "vision": sum(scores[4:]) / 5, "overall": sum(scores) / 9}
    )
