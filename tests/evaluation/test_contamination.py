"""The whole check: rows of files against the sets of a suite."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.data.conversation import Conversation
from mmtune.data.sources.readers import read_conversations
from mmtune.evaluation.contamination.check import ContaminationReport, Hit, check_contamination
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.evaluation.tasks.task import load_task
from mmtune.interfaces import Turn

STORIES = [
    f"The {animal} of the {place} sleeps {n} hours a day and hunts {prey} at night near the old stone {mark}."
    for n, (animal, place, prey, mark) in enumerate(
        [("owl", "forest", "mice", "mill"), ("fox", "hills", "hares", "wall"), ("bat", "caves", "moths", "tower")], 5
    )
]
INSTRUCTION = "Please read all of it twice before you answer the question below:"
READING = [
    {"passage": story, "question": f"How long does the {name} in this story rest every single day?", "answer": "long"}
    for story, name in zip(STORIES, ["owl", "fox", "bat"], strict=True)
]


def png(seed: int, size: int = 48) -> bytes:
    draw = random.Random(seed)
    small = Image.new("RGB", (6, 6))
    small.putdata([tuple(draw.randrange(256) for _ in "rgb") for _ in range(36)])
    stream = io.BytesIO()
    small.resize((size, size), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def jpeg(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def photo_row(data: bytes) -> dict[str, Any]:
    return {"photo": {"bytes": data, "path": None}, "question": "What is this?", "answer": "it"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two sets, and one more whose data is not there."""
    folder = tmp_path_factory.mktemp("evaluation")
    common = {"version": 1, "target": "{{ answer }}", "answer": "short", "max_tokens": 4, "metrics": ["accuracy"]}
    texts = {
        **common,
        "prompt": f"Context: {{{{ passage }}}}\n{INSTRUCTION} {{{{ question }}}}",
        "modality": "language",
    }
    photos = {**common, "prompt": "{{ question }}", "modality": "vision", "images": ["photo"]}
    for name, task, rows in (
        ("reading", texts, READING),
        ("looking", photos, [photo_row(png(n)) for n in (0, 0, 1, 2)]),
        ("missing", texts, None),
    ):
        value = {"name": name, **task, "dataset": {"path": f"own/{name}", "split": "test"}}
        (folder / f"{name}.yaml").write_text(json.dumps(value))
        if rows is not None:
            file = folder / "hub" / "own" / name / "default" / "test.parquet"
            file.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), file)
    tasks = [f"{name}.yaml" for name in ("reading", "looking", "missing")]
    (folder / "own.yaml").write_text(json.dumps({"name": "own", "tasks": tasks}))
    return folder


def said(row: int, text: str, *photos: bytes | Path, source: str = "rows.jsonl") -> Conversation:
    marks = "<image>" * len(photos)
    return Conversation((Turn("user", marks + text), Turn("assistant", "Yes.")), photos, source, row)


def checked(root: Path, *rows: Conversation, **options: Any) -> ContaminationReport:
    return check_contamination(iter(rows), root / "own.yaml", data_root=root, **options)


CLEAN = said(1, "What is the capital of France, and how many people have lived there since the last war?", png(77))


def test_clean_rows_leave_sets_unseen_but_not_those_that_are_not_there(root: Path) -> None:
    report = checked(root, CLEAN)
    assert [(name, check.rows, check.hit_rows, check.verdict) for name, check in report.sets.items()] == [
        ("reading", 3, 0, "unseen"),
        ("looking", 4, 0, "unseen"),
        ("missing", 0, 0, "unchecked"),
    ]
    assert (report.hits, report.seen, report.training_rows, report.sources) == ([], [], 1, {"rows.jsonl": 1})
    reason = report.sets["missing"].reason
    assert reason is not None
    assert str(Path("own", "missing", "default", "test.parquet")) in reason


def test_a_hit_names_both_rows_the_kind_and_the_words(root: Path) -> None:
    report = checked(root, CLEAN, said(7, f"Summarise: {STORIES[1].upper()}"))
    assert report.hits == [
        Hit("reading", 1, "rows.jsonl", 7, "text", STORIES[1].lower().removesuffix(".").replace(",", ""))
    ]
    check = report.sets["reading"]
    assert (check.verdict, check.rows, check.hit_rows, check.kinds) == ("seen", 3, 1, {"text": 1})
    assert report.sets["looking"].verdict == "unseen"
    assert report.seen == ["reading"]
    assert report.rows_to_leave_out() == report.rows_to_leave_out(["reading"]) == {("rows.jsonl", 7)}
    assert report.rows_to_leave_out(["looking"]) == set()


def test_the_question_alone(root: Path) -> None:
    [hit] = checked(root, said(2, READING[2]["question"])).hits
    assert (hit.task_row, hit.kind) == (2, "question")


def test_the_words_of_the_task_file_are_no_overlap(root: Path) -> None:
    assert checked(root, said(1, f"Context: something else.\n{INSTRUCTION} What is new in the world today?")).hits == []


def test_photos_by_file_pixels_and_looks(root: Path, tmp_path: Path) -> None:
    same_pixels = io.BytesIO()
    Image.open(io.BytesIO(png(1))).save(same_pixels, "BMP")
    (tmp_path / "b.jpg").write_bytes(jpeg(png(2)))
    report = checked(
        root,
        said(1, "a", png(0)),
        said(2, "b", same_pixels.getvalue()),
        said(3, "c", png(9), tmp_path / "b.jpg"),
        CLEAN,
    )
    assert [(hit.task_row, hit.row, hit.kind) for hit in report.hits] == [
        (0, 1, "same file"),
        (1, 1, "same file"),  # both rows that show the photo
        (2, 2, "same pixels"),
        (3, 3, "near photo"),
    ]
    check = report.sets["looking"]
    assert (check.hit_rows, check.kinds) == (4, {"near photo": 1, "same file": 2, "same pixels": 1})


def test_the_order_of_rows_does_not_matter(root: Path) -> None:
    rows = [said(n, text, source=f"{n % 3}.jsonl") for n, text in enumerate(STORIES * 30, 1)]
    rows += [said(n, "x", png(n % 4), source="p.jsonl") for n in range(1, 90)]
    rows += [said(5, " ".join(STORIES[0].split()[k:]), source="several.jsonl") for k in range(4)]
    first = checked(root, *rows).to_dict()
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert checked(root, *shuffled).to_dict() == first


def test_of_several_conversations_in_a_row_the_longest_overlap_is_told(root: Path) -> None:
    words = STORIES[0].split()
    report = checked(root, *(said(4, " ".join(words[:n])) for n in (14, 17, 15)))
    assert [len(hit.overlap.split()) for hit in report.hits] == [17]


def test_damaged_and_missing_photos_of_training_rows_are_counted(root: Path, tmp_path: Path) -> None:
    report = checked(
        root, said(1, "a", b"no picture"), said(2, "b", tmp_path / "none.png"), said(3, "c", b"no picture")
    )
    assert (report.undecoded, report.hits) == (2, [])


def test_tasks_limit_and_what_cannot_be(root: Path) -> None:
    report = checked(root, said(1, STORIES[2]), tasks=["reading"], limit=2)
    assert list(report.sets) == ["reading"]
    assert (report.sets["reading"].rows, report.hits) == (2, [])
    with pytest.raises(UserError, match="--tasks: 'readin'"):
        checked(root, CLEAN, tasks=["readin"])
    with pytest.raises(UserError, match=r"^--data-root .*none: no such folder"):
        check_contamination([], root / "own.yaml", data_root=root / "none")
    with pytest.raises(UserError, match="--limit 0"):
        checked(root, CLEAN, limit=0)


def test_rows_without_enough_words_are_counted_and_a_set_of_such_alone_is_unchecked(root: Path, tmp_path: Path) -> None:
    task = json.loads((root / "reading.yaml").read_text()) | {"prompt": "{{ question }}", "name": "short"}
    for name, questions in (("some", ["Why?", READING[0]["question"]]), ("none", ["Why?", "When?"])):
        file = tmp_path / "hub" / "own" / name / "default" / "test.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([{"question": q, "answer": "x"} for q in questions]), file)
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(task | {"dataset": {"path": f"own/{name}", "split": "test"}}))
        check = check_contamination([CLEAN], path, data_root=tmp_path).sets["short"]
        assert (check.rows, check.uncompared) == (2, 1 if name == "some" else 2)
        assert check.verdict == ("unseen" if name == "some" else "unchecked")


def test_a_training_file_is_fingerprinted_and_all_is_json(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": STORIES[0], "completion": "x"}) + "\n")
    report = check_contamination(read_conversations(str(source)), root / "own.yaml", data_root=root)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["sources"] == {str(source): 1}
    assert len(values["fingerprints"][str(source)]) == 64
    task = load_task(str(root / "reading.yaml"))
    assert values["sets"]["reading"]["fingerprint"] == load_rows(task, root, limit=None).fingerprint
    assert values["hits"][0]["source"] == str(source)
    assert values["convention"]["words_in_a_row"] == 13


def asked(name: str, data: Path) -> Iterator[Conversation]:
    """The rows of a task as if someone had trained on them."""
    task = load_task(name)
    renderer = Renderer(task, "blind")
    for number, row in load_rows(task, data, limit=None, keep=renderer.keeps).rows:
        question = renderer.question(number, row)
        photos = tuple(photo.data for photo in question.images)
        yield Conversation((Turn("user", question.prompt), Turn("assistant", question.target)), photos, name, number)


@pytest.mark.parametrize(("name", "least"), [("boolq", 1.0), ("race", 1.0), ("openbookqa", 0.8), ("pope", 1.0)])
def test_who_trains_on_a_set_is_told_so(name: str, least: float, shared_data: Path) -> None:
    if not any((shared_data / "hub" / load_task(name).dataset.path).rglob("*.parquet")):
        pytest.skip(f"needs {name} in ../shared/data")
    report = check_contamination(asked(name, shared_data), "local9", data_root=shared_data)
    assert report.seen == [name]
    check = report.sets[name]
    assert sum(hit.row == hit.task_row for hit in report.hits) >= least * check.rows
    assert check.hit_rows >= least * check.rows


def test_local9_is_unseen_by_the_text_we_train_on(shared_data: Path) -> None:
    if not (shared_data / "text" / "gsm8k_2000.jsonl").is_file():
        pytest.skip("needs GSM8K in ../shared/data")
    rows = read_conversations(str(shared_data / "text" / "gsm8k_2000.jsonl"))
    report = check_contamination(rows, "local9", data_root=shared_data)
    assert {name: check.verdict for name, check in report.sets.items()} == {
        task.name: "unseen" for task in load_suite("local9").tasks
    }
