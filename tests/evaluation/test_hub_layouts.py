"""AI2D, GQA and RealWorldQA cannot be had everywhere: rows made by hand in exactly the columns that the hub has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_models import Scripted, picture, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Sample, TaskResult

CHOOSE = "Choose the best option from below:"
LETTER_ONLY = "Please answer directly with only the letter of the correct option and nothing else."
ONE_WORD = "Please answer directly with a single word or number."


def asked(name: str, root: Path, replies: dict[str, str], **options: Any) -> tuple[TaskResult, list[Sample]]:
    """The task's result when the model replies to prompts that hold a text, and says nothing to others."""

    def reply(prompt: str) -> str:
        return next((said for part, said in replies.items() if part in prompt), "")

    results = evaluate(Scripted(reply), name, data_root=root, progress=False, **options)
    return results.tasks[name], results.samples[name]


def ai2d(question: str, options: list[str], answer: Any, shade: int = 0) -> dict[str, Any]:
    return {"question": question, "options": options, "answer": answer, "image": picture(shade)}


def test_ai2d(tmp_path: Path) -> None:
    rows = [
        ai2d("What eats grass?", ["fox", "hare", "owl", "None of the above."], "1"),
        ai2d("Which is A?", ["B", "A", "C", "D"], "1", 1),  # options that are letters, in another order
        ai2d("What is at <image> T?", ["root", "", "root", "stem"], "3", 2),  # an empty option, one twice, a mark
        ai2d("Quelle étape ?", ["œuf", "larve\nblanche", "naïade", "“imago”"], "0", 3),
        ai2d("Silence?", ["a", "b", "c", "d"], "0", 4),
    ]
    write_rows(tmp_path, "lmms-lab/ai2d", None, "test", rows)
    replies = {"grass": 'Hare"', "Which is A": "B", "at image T": "D. stem", "étape": "ŒUF."}
    result, samples = asked("ai2d", tmp_path, replies)
    assert [sample.prediction for sample in samples] == ["B", "B", "D", "A", None]
    assert [sample.score for sample in samples] == [1, 1, 1, 1, 0]
    assert (result.n, result.score, result.unparsed) == (5, 0.8, 0.2)
    assert samples[0].prompt == f"<image>\nWhat eats grass? {CHOOSE}\nA: fox\nB: hare\nC: owl\nD: None of the above."
    assert samples[2].prompt.count("<image>") == 1


@pytest.mark.parametrize("answer", ["", "4", "-1", "A"])
def test_an_ai2d_row_without_a_usable_label(tmp_path: Path, answer: str) -> None:
    write_rows(tmp_path, "lmms-lab/ai2d", None, "test", [ai2d("What?", ["a", "b", "c", "d"], answer)])
    with pytest.raises(UserError, match=r"ai2d.yaml: target: row 0: "):
        asked("ai2d", tmp_path, {})


def gqa(root: Path, rows: list[tuple[str, str]]) -> None:
    """Questions and photos in two configs; every second question is on the same photo."""
    questions = [
        {
            "id": f"2{number:08}",
            "imageId": f"n{number % 2}",
            "question": question,
            "isBalanced": True,
            "groups": {"global": "", "local": "10q-x"},
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "types": {"detailed": "x", "semantic": "attr", "structural": "query"},
        }
        for number, (question, answer) in enumerate(rows)
    ]
    images = [{"id": f"n{number}", "image": picture(number)} for number in (1, 2, 0)]  # in another order, one unused
    write_rows(root, "lmms-lab/GQA", "testdev_balanced_instructions", "testdev", questions)
    write_rows(root, "lmms-lab/GQA", "testdev_balanced_images", "testdev", images)


GQA_ROWS = [
    ("Is the sky dark?", "yes"),
    ("What color is the snow?", "white"),
    ("What is on the ground?", "snow"),
    ("Are there both dogs and cats?", "No"),
    ("Is the bag to the left or to the right of the man?", "left"),
    ("How many cups?", "2"),
]


def test_gqa(tmp_path: Path) -> None:
    gqa(tmp_path, GQA_ROWS)
    replies = {
        "sky": "True.",
        "snow?": 'White"',
        "ground": "the snow",
        "both": "maybe",
        "bag": "Left, I think",
        "cups": "two",
    }
    result, samples = asked("gqa", tmp_path, replies)
    assert [sample.score for sample in samples] == [1, 1, 0, 0, 1, 1]
    assert result.unparsed == pytest.approx(1 / 6)  # `maybe` where yes or no was asked
    asks = ["yes" in sample.prompt for sample in samples]
    assert asks == [True, False, False, True, False, False]
    assert samples[0].prompt == '<image>\nPlease answer the question with "yes" or "no". Is the sky dark?'
    assert samples[1].prompt == "<image>\nPlease provide a short answer to the question: What color is the snow?"
    assert samples[0].image == samples[2].image != samples[1].image


def test_gqa_under_the_papers_protocol_asks_as_its_files_do(tmp_path: Path) -> None:
    gqa(tmp_path, GQA_ROWS)
    _, samples = asked("gqa", tmp_path, {}, protocol="mlan")
    assert ['"yes" or "no"' in sample.prompt for sample in samples] == [True, False, True, True, False, False]


def realworldqa(question: str, answer: str, shade: int = 0) -> dict[str, Any]:
    return {"image": picture(shade), "image_path": f"{shade}.webp", "question": question, "answer": answer}


def test_realworldqa(tmp_path: Path) -> None:
    rows = [
        realworldqa(f"Which way?\n\nA. Left\nB. Straight ahead\nC. Right\n\n{LETTER_ONLY}", "B"),
        realworldqa(f"How far is it\nA. 1.5 m\nB. 3 m\n{LETTER_ONLY}", "b.", 1),
        realworldqa(f"Is there a stop sign? {ONE_WORD}", "Yes", 2),
        realworldqa(f"How many arrows\n\n{ONE_WORD}", "3", 3),
        realworldqa(f"What does the sign say? It begins with A. B is next. {ONE_WORD}", "Stop", 4),
        realworldqa("Which animal?\n\nA. Cat\nB. Dog", "A", 5),  # no closing instruction
    ]
    write_rows(tmp_path, "lmms-lab/RealWorldQA", None, "test", rows)
    replies = {
        "way": "straight ahead",
        "far": "B: 3 m",
        "stop sign": "YES",
        "arrows": "Three",
        "say": "STOP!",
        "animal": "a",
    }
    result, samples = asked("realworldqa", tmp_path, replies)
    assert [sample.target for sample in samples] == ["B", "B", "yes", "3", "stop", "A"]
    assert [sample.prediction for sample in samples] == ["B", "B", "yes", "3", "STOP!", "A"]
    assert result.score == 1
    assert [sample.prompt.removeprefix("<image>\n") for sample in samples] == [
        f"Which way? {CHOOSE}\nA: Left\nB: Straight ahead\nC: Right",
        f"How far is it... {CHOOSE}\nA: 1.5 m\nB: 3 m",
        'Please answer the question with "yes" or "no". Is there a stop sign?',
        "Please provide a short answer to the question: How many arrows...",
        "Please provide a short answer to the question: What does the sign say? It begins with A. B is next.",
        f"Which animal? {CHOOSE}\nA: Cat\nB: Dog",
    ]


def mathvision(question: str, options: list[str] | None, answer: str, shade: int = 0) -> dict[str, Any]:
    image = picture(shade)
    return {"id": str(shade), "question": question, "options": options, "answer": answer, "decoded_image": image}


def test_mathvision_with_and_without_options(tmp_path: Path) -> None:
    rows = [
        mathvision("What time is it?\n<image1>", ["4:45", "5:05", "12:00"], "B"),
        mathvision("<image1> Find $x$ in <image2>.", [], r"\frac{1}{2}", 1),
        mathvision("Find the area of\n<image1>the square", None, "1,000", 2),
        mathvision("Which figure?\n<image1>", ["A", "B", "C"], "C", 3),
    ]
    write_rows(tmp_path, "MathLLMs/MathVision", None, "test", rows)
    replies = {"time": '5:05"', "Find $x$": "0.5", "area": "1000.", "figure": "(C) figure C"}
    result, samples = asked("mathvision", tmp_path, replies)
    assert [sample.score for sample in samples] == [1] * 4
    assert result.metric == "math_accuracy"
    assert {name: group["n"] for name, group in result.metrics["groups"].items()} == {
        "with options": 2,
        "free answer": 2,
    }
    assert [sample.prompt.removeprefix("<image>\n") for sample in samples] == [
        f"What time is it? {CHOOSE}\nA: 4:45\nB: 5:05\nC: 12:00",
        "Please provide a short answer to the question: Find $x$ in.",
        "Please provide a short answer to the question: Find the area of the square",
        f"Which figure? {CHOOSE}\nA: A\nB: B\nC: C",
    ]


def test_vqav2_gives_parts_of_a_point(tmp_path: Path) -> None:
    people = ["dog"] * 2 + ["cat"] * 8
    rows = [
        {
            "question_id": number,
            "question": "What animal?",
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(people)],
            "multiple_choice_answer": "cat",
            "image": picture(number),
        }
        for number in range(2)
    ]
    write_rows(tmp_path, "lmms-lab/VQAv2", None, "validation", rows)
    result, samples = asked("vqav2", tmp_path, {"animal": 'The Dog."'})
    assert [sample.score for sample in samples] == pytest.approx([0.6, 0.6])
    assert (result.metric, result.metrics) == ("vqa_accuracy", {"vqa_accuracy": pytest.approx(0.6)})
    write_rows(tmp_path, "lmms-lab/VQAv2", None, "validation", [{**rows[0], "answers": rows[0]["answers"][:1]}])
    with pytest.raises(UserError, match=r"vqav2.yaml: references: row 0: must be the answers of at least two people"):
        asked("vqav2", tmp_path, {})
