"""What every shipped task says to the model, against text checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.common.errors import UserError
from mmtune.data.images import EncodedImage
from mmtune.evaluation.tasks.filters import Protocol, clean_hellaswag, listed_options, looks_like_yes_no
from mmtune.evaluation.tasks.render import Question, Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import load_task

PHOTO = EncodedImage.of(b"x")
CHOOSE = "Choose the best option from below:"


def question(task: str, row: dict[str, Any], protocol: Protocol = "blind") -> Question:
    return Renderer(load_task(task), protocol).question(0, row)


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "race",
        {"article": "A text.\nMore.", "question": "Why?", "options": ["Bats.", "Cats."], "answer": "B"},
        f"Context: A text.\nMore.\nWhy? {CHOOSE}\nA: Bats.\nB: Cats.",
        "B",
    ),
    (
        "openbookqa",
        {
            "question_stem": "A hemisphere experiences summer when",
            "choices": {"text": ["it's tilted", "no, it spins."], "label": ["A", "B"]},
            "answerKey": "A",
        },
        f"A hemisphere experiences summer when... {CHOOSE}\nA: its tilted\nB: no it spins",
        "A",
    ),
    (
        "openbookqa",
        {"question_stem": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        f"Why? {CHOOSE}\nA: a\nB: b",
        "B",
    ),
    (
        "boolq",
        {"passage": "It is blue.", "question": "is it blue", "answer": True},
        'Context: It is blue.\nPlease answer with "yes" or "no":\nis it blue?',
        "yes",
    ),
    (
        "hellaswag",
        {
            "activity_label": "Health",
            "ctx_a": "[header] How to sleep [title] Go to bed. [step] Lie down.",
            "ctx_b": "the  man",
            "endings": ["[substeps] Shut your eyes [title] Dream.", "runs."],
            "label": "1",
        },
        "Health: How to sleep. Go to bed. Lie down. The man Choose the best option from the choices provided "
        "to complete the sentence:\nA: Shut your eyes. Dream.\nB: runs.",
        "B",
    ),
    (
        "realworldqa",
        {
            "image": PHOTO,
            "question": "Which way is the car facing?\n\nA. Left\nB. Straight ahead\nC. Right\n"
            "Please answer directly with only the letter of the correct option and nothing else.",
            "answer": "C",
        },
        f"<image>\nWhich way is the car facing? {CHOOSE}\nA: Left\nB: Straight ahead\nC: Right",
        "C",
    ),
    (
        "realworldqa",
        {
            "image": PHOTO,
            "question": "Is there a stop sign?\n\nPlease answer directly with a single word or number.",
            "answer": "Yes",
        },
        '<image>\nPlease answer the question with "yes" or "no". Is there a stop sign?',
        "yes",
    ),
    (
        "realworldqa",
        {
            "image": PHOTO,
            "question": "How many arrows\n\nPlease answer directly with a single word or number.",
            "answer": "2",
        },
        "<image>\nPlease provide a short answer to the question: How many arrows...",
        "2",
    ),
    (
        "ai2d",
        {"image": PHOTO, "question": "What eats grass?", "options": ["fox", "hare"], "answer": "1"},
        f"<image>\nWhat eats grass? {CHOOSE}\nA: fox\nB: hare",
        "B",
    ),
    (
        "pope",
        {"image": PHOTO, "question": "Is there a cup in the image?", "answer": "no", "category": "random"},
        '<image>\nPlease answer with "yes" or "no":\nIs there a cup in the image?',
        "no",
    ),
    (
        "gqa",
        {"image": PHOTO, "imageId": "1", "question": "What color is the dog?", "answer": "brown"},
        "<image>\nPlease provide a short answer to the question: What color is the dog?",
        "brown",
    ),
    (
        "gqa",
        {"image": PHOTO, "imageId": "1", "question": "Is the dog brown?", "answer": "yes"},
        '<image>\nPlease answer the question with "yes" or "no". Is the dog brown?',
        "yes",
    ),
    (
        "scienceqa",
        {
            "image": PHOTO,
            "question": "Will they attract?",
            "choices": ["yes", "no"],
            "answer": 1,
            "hint": "Two.",
        },
        f"<image>\nContext: Two.\nWill they attract? {CHOOSE}\nA: yes\nB: no",
        "B",
    ),
    (
        "scienceqa",
        {"image": None, "question": "What is ice?", "choices": ["solid", "liquid"], "answer": 0, "hint": ""},
        f"What is ice? {CHOOSE}\nA: solid\nB: liquid",
        "A",
    ),
    (
        "easy_vqa_shape",
        {"image": PHOTO, "question": "what shape is present?", "answer": "circle"},
        "<image>\nPlease provide a short answer to the question: what shape is present?",
        "circle",
    ),
    (
        "easy_vqa_colour",
        {"image": PHOTO, "question": "what color is the shape?", "answer": "teal"},
        "<image>\nPlease provide a short answer to the question: what color is the shape?",
        "teal",
    ),
    (
        "easy_vqa_presence",
        {"image": PHOTO, "question": "is no circle present?", "answer": "yes"},
        '<image>\nPlease answer with "yes" or "no":\nis no circle present?',
        "yes",
    ),
    (
        "winogrande",
        {"sentence": "Ann met Eve, and _ smiled.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        "Ann met Eve, and _ smiled. Choose the best option from below to fill in the blank:\nA: Ann\nB: Eve",
        "B",
    ),
    (
        "social_i_qa",
        {
            "context": "Jo fell.",
            "question": "Why?",
            "answerA": "a",
            "answerB": "b",
            "answerC": "c",
            "label": "3",
        },
        f"Context: Jo fell.\nWhy? {CHOOSE}\nA: a\nB: b\nC: c",
        "C",
    ),
    (
        "copa",
        {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0},
        f"Context: It rained.\nWhat happened as a result? {CHOOSE}\nA: Wet.\nB: Dry.",
        "A",
    ),
    (
        "copa",
        {"premise": "It rained.", "choice1": "Wet.", "choice2": "Clouds.", "question": "cause", "label": 1},
        f"Context: It rained.\nWhat was the cause of this? {CHOOSE}\nA: Wet.\nB: Clouds.",
        "B",
    ),
    (
        "rte",
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
        'Context: It rains.\nPlease answer with "yes" or "no":\nDoes it follow that "It is wet."?',
        "yes",
    ),
]


@pytest.mark.parametrize(("task", "row", "prompt", "target"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_prompts(task: str, row: dict[str, Any], prompt: str, target: str) -> None:
    asked = question(task, row)
    assert asked.prompt == prompt
    assert asked.target == target
    assert len(asked.images) == prompt.count("<image>")


def test_every_task_of_the_nine_has_its_response_prefix_and_limits() -> None:
    tasks = {task.name: task for task in load_suite("mlan9").tasks}
    limits = {name: task.max_tokens for name, task in tasks.items()}
    assert limits == {
        "race": 20,
        "openbookqa": 20,
        "boolq": 20,
        "hellaswag": 16,
        "realworldqa": 16,
        "ai2d": 8,
        "pope": 4,
        "gqa": 8,
        "scienceqa": 8,
    }
    assert {task.response_prefix for name, task in tasks.items() if name != "scienceqa"} == {'The best answer is "'}
    assert tasks["scienceqa"].response_prefix == 'The answer is "'
    assert [task.modality for task in tasks.values()] == ["language"] * 4 + ["vision"] * 5


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("Is the dog brown?", True),
        ("are there any cups or plates?", True),
        ("Is there a cup or a plate?", True),
        ("Is the dog to the left or to the right of the cat?", False),
        ("If I turn left, will I hit the car?", True),
        ("The light is red. Can we go?", True),
        ("Isn't it raining?", True),
        ("What is this?", False),
        ("island or sea?", False),
        ("", False),
    ],
)
def test_yes_no_from_the_question_alone(asked: str, expected: bool) -> None:
    assert looks_like_yes_no(asked) is expected


def test_blind_prompts_never_depend_on_the_gold_answer() -> None:
    for asked in ("Is the dog brown?", "What is it?"):
        row = {"image": PHOTO, "imageId": "1", "question": asked}
        prompts = {question("gqa", {**row, "answer": gold}).prompt for gold in ("yes", "no", "snow", "dog")}
        assert len(prompts) == 1


def test_mlan_prompts_follow_the_gold_answer_as_the_released_files_do() -> None:
    def prompt(gold: str) -> str:
        row = {"image": PHOTO, "imageId": "1", "question": "What is it?", "answer": gold}
        return question("gqa", row, "mlan").prompt

    assert "short answer" in prompt("dog")
    assert '"yes" or "no"' in prompt("no")
    assert '"yes" or "no"' in prompt("snow")


def test_a_mark_in_the_rows_own_text_is_no_place_for_a_photo() -> None:
    asked = question("boolq", {"passage": "Write <image> here.", "question": "is it", "answer": False})
    assert "<image>" not in asked.prompt


@pytest.mark.parametrize("label", ["", "-1", "7"])
def test_an_unlabelled_row_is_an_error_not_option_a(label: str) -> None:
    row = {"activity_label": "x", "ctx_a": "x", "ctx_b": "", "endings": ["a", "b"], "label": label}
    with pytest.raises(UserError, match=r"hellaswag.yaml: target: row 0"):
        question("hellaswag", row)


def test_letters_that_are_not_options() -> None:
    assert listed_options("What is it?\nB. one\nC. two") == []
    assert listed_options("What is it?\nA. only") == []
    assert listed_options("What?\n\nA. one\nB. two\n") == ["one", "two"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_cleaned_text_has_no_stray_spaces(text: str) -> None:
    cleaned = clean_hellaswag(text)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()


@pytest.mark.parametrize(
    "name",
    [
        *("race", "openbookqa", "boolq", "hellaswag", "pope", "scienceqa"),
        *("easy_vqa_shape", "easy_vqa_colour", "easy_vqa_presence"),
    ],
)
def test_real_rows(name: str, shared_data: Path) -> None:
    task = load_task(name)
    if not any((shared_data / "hub" / task.dataset.path).rglob(f"{task.dataset.split}.parquet")):
        pytest.skip(f"needs {task.dataset.path} in ../shared/data")
    renderer = Renderer(task, "blind")
    rows = load_rows(task, shared_data, limit=300, keep=renderer.keeps)
    for number, row in rows.rows:
        asked = renderer.question(number, row)
        assert asked.prompt.strip()
        assert "{{" not in asked.prompt
        if asked.options:
            assert len(asked.options) >= 2
            assert asked.prompt.endswith(f"{'ABCDEFG'[len(asked.options) - 1]}: {asked.options[-1]}")
