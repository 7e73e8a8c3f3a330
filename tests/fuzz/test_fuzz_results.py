"""Damaged results, samples, ledgers, configs and databases: compared and reported as they are, or refused by name."""

from __future__ import annotations

import io
import json
import random
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import Cases, numbered
from mutations import altered, damaged, written
from PIL import Image

from mmtune.analysis.compare import compare
from mmtune.analysis.exports import write_tables
from mmtune.analysis.report import write_report
from mmtune.analysis.samples import collect
from mmtune.analysis.study import study
from mmtune.analysis.variants import read_variants
from mmtune.evaluation.run.database import Database
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer
from mmtune.evaluation.run.store import Store

SHA = "ab" * 32


def results(model: str, score: float) -> dict[str, Any]:
    task = {"version": 1, "n": 4, "metric": "accuracy", "score": score, "stderr": 0.1, "unparsed": 0.0, "failed": 0,
            "metrics": {"accuracy": score, "by_group": {"a": 0.5}}, "protocol": "blind", "answering": "generate",
            "thinking_budget": 0, "seconds": 2.5, "cost": dict.fromkeys(COSTS, 1.0), "key": "k",
            "dataset": {"path": "a/b", "config": None, "split": "test", "fingerprint": "f"}}  # fmt: skip
    tasks = {"read": {"modality": "language", **task}, "see": {"modality": "vision", **task}}
    averages = {"language": score, "vision": score, "overall": score}
    return {"suite": "s", "model": model, "created": "2026-01-01T00:00:00", "versions": {}, "tasks": tasks,
            "averages": averages, "cost": dict.fromkeys(COSTS, 2.0)}  # fmt: skip


def samples(right: int, task: str) -> list[dict[str, Any]]:
    image = SHA if task == "see" else None
    return [{"id": n, "prompt": f"Question {n}?", "response": "yes.", "prediction": "yes", "target": "yes",
             "score": float(n < right), "image": image, "group": None, "error": None, "loglikelihoods": None}
            for n in range(4)]  # fmt: skip


LEDGER = {"wall_s": 5.5, "train_s": 4.25, "steps": 2, "samples": 100, "tower_passes": 7, "energy_kwh": 0.01,
          "tokens": {"text": 5000, "image": 300, "pad": 0, "supervised": 1234}, "hardware": {"gpus": []},
          "flops": {"language": 2e12, "projector": 10, "tower": 0}, "params": {"trainable": 10, "total": 20},
          "peak_memory_bytes": {"host": 2**30, "device": None}, "versions": {"torch": "2.0"}}  # fmt: skip
CONFIG = {"seed_everything": 42, "out": "runs/a", "model": {"stage": "tune", "base": None, "lora": {"r": 4}},
          "data": {"train": {"text": ["rows.jsonl"], "seed": 1}}, "trainer": {"max_epochs": 1}}  # fmt: skip
PLAN = {"variants": [{"name": "text", "runs": [{"run": "a", "evaluation": "a/eval", "seed": 1}]},
                 {"name": "both", "runs": [{"run": "b", "evaluation": "b/eval", "seed": 2}]}],
        "seen": {"see": "its photos were aligned on"}}  # fmt: skip


def write(folder: Path, run: str, right: int) -> None:
    """A run with an evaluation in it."""
    evaluation = folder / run / "eval"
    (evaluation / "samples").mkdir(parents=True)
    (evaluation / "thumbnails").mkdir()
    (evaluation / "results.json").write_text(json.dumps(results(str(folder / run), right / 4)))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    for task in ("read", "see"):
        lines = "".join(json.dumps(one) + "\n" for one in samples(right, task))
        (evaluation / "samples" / f"{task}.jsonl").write_text(lines)
        with zipfile.ZipFile(evaluation / "thumbnails" / f"{task}.zip", "w") as archive:
            archive.writestr(f"{SHA}.jpg", picture.getvalue())
    (folder / run / "ledger.json").write_text(json.dumps(LEDGER))
    (folder / run / "config.yaml").write_text(json.dumps(CONFIG))
    (folder / run / "metrics.csv").write_text("step,train_loss,lr\n0,3.0,0.1\n1,2.5,\n2,2.0,0.1\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder, "a", 1)
    write(folder, "b", 3)
    (folder / "reproduce.json").write_text(json.dumps(PLAN))
    return folder


FILES = ["b/eval/results.json", "b/eval/samples/read.jsonl", "b/eval/samples/see.jsonl", "b/eval/thumbnails/see.zip",
         "b/ledger.json", "b/config.yaml", "b/metrics.csv", "reproduce.json"]  # fmt: skip


class Damaged:
    """A copy of the runs in which one file at a time is damaged; `restore` makes it whole."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(whole, folder)

    def damage(self, name: str, random: random.Random) -> Path:
        file = self.folder / name
        self.file, self.content = file, file.read_bytes()
        data = self.content
        if file.suffix in (".json", ".yaml") and random.random() < 0.8:
            data = written(altered(json.loads(data), random), random)
        elif file.suffix == ".jsonl" and random.random() < 0.8:
            lines = data.splitlines()
            at = random.randrange(len(lines))
            lines[at] = written(altered(json.loads(lines[at]), random), random)
            data = b"\n".join(lines) + b"\n"
        else:
            data = damaged(data, random)
        file.write_bytes(data)
        return file

    def restore(self) -> None:
        self.file.write_bytes(self.content)


@pytest.fixture
def runs(whole: Path, tmp_path: Path) -> Damaged:
    return Damaged(whole, tmp_path / "runs")


def over_all(numbers: range, name: str, runs: Damaged, act: Callable[[str, Path], Any], files: list[str]) -> None:
    for number in numbers:
        random_ = random.Random(f"{name} {number}")
        file = runs.damage(files[number % len(files)], random_)
        try:
            act(f"{name} {number}: {file.name} {file.read_bytes()[:400]!r}", file)
        finally:
            runs.restore()


@numbered(60, 1000)
def test_comparing(numbers: range, cases: Cases, runs: Damaged) -> None:
    def act(case: str, file: Path) -> None:
        def compared() -> str:
            return json.dumps(compare([runs.folder / "a", runs.folder / "b"]).as_dict(), allow_nan=False)

        cases.run(case, compared, names=[file.name, "task "])

    over_all(numbers, "compare", runs, act, FILES[:3])


@numbered(12, 150)
def test_the_command_that_compares(numbers: range, cases: Cases, runs: Damaged, tmp_path: Path) -> None:
    def act(case: str, file: Path) -> None:
        argv = ["compare", str(runs.folder / "a"), str(runs.folder / "b"), "--out", str(tmp_path / "out"), "--html"]
        cases.command(case, argv, names=[file.name, "task "])

    over_all(numbers, "compare command", runs, act, FILES[:3])


@numbered(160, 3000)
def test_reading_runs_for_a_report(numbers: range, cases: Cases, runs: Damaged, tmp_path: Path) -> None:
    def act(case: str, file: Path) -> None:
        def reported() -> None:
            variants = read_variants(
                [runs.folder] if file.name == "reproduce.json" else [runs.folder / "a", runs.folder / "b"]
            )
            for variant in variants:
                for run in variant.runs:
                    assert all(isinstance(step, int) for step, _ in run.losses)
            found = study(variants)
            collect(found, 10)
            write_tables(found, tmp_path / "tables", found.baseline())

        cases.run(case, reported, names=[file.name, "task in common", "finished", "given twice"])

    over_all(numbers, "report", runs, act, FILES)


@numbered(3, 40)
def test_reports(numbers: range, cases: Cases, runs: Damaged, tmp_path: Path) -> None:
    def act(case: str, file: Path) -> None:
        def reported() -> None:
            variants = read_variants(
                [runs.folder] if file.name == "reproduce.json" else [runs.folder / "a", runs.folder / "b"]
            )
            write_report(variants, tmp_path / "report.html", title="t")

        cases.run(case, reported, names=[file.name, "task in common", "finished", "given twice"])

    over_all(numbers, "report page", runs, act, FILES)


@numbered(60, 600)
def test_going_on_with_an_evaluation(numbers: range, cases: Cases, runs: Damaged) -> None:
    def act(case: str, file: Path) -> None:
        cases.run(case, lambda: Store(runs.folder / "b" / "eval").finished(), names=[file.name])

    over_all(numbers, "finished", runs, act, FILES[:1])


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("answers") / "answers.sqlite"
    database = Database(file)
    cost = dict.fromkeys(COSTS, 1.0)
    for chunk in range(5):
        rows = range(8 * chunk, 8 * chunk + 8)
        answers = [Answer(row, f"the answer to {row}" * 9, (-1.0, None) if row % 2 else None) for row in rows]
        database.add("key", chunk, answers, cost)
    database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return file.read_bytes()


def read_database(file: Path) -> tuple[set[int], dict[int, Answer]]:
    database = Database(file)
    try:
        return database.chunks("key"), (database.cost("key"), database.rows("key"), database.answers("key"))[-1]
    finally:
        database.close()


@numbered(80, 1500)
def test_damaged_databases(numbers: range, cases: Cases, answered: bytes, tmp_path: Path) -> None:
    for number in numbers:
        random_ = random.Random(f"database {number}")
        file = tmp_path / f"{number}.sqlite"
        file.write_bytes(damaged(answered, random_))
        outcome = cases.run(f"database {number}", partial(read_database, file), names=[file])
        if isinstance(outcome, tuple) and not all(isinstance(one.response, str) for one in outcome[1].values()):
            cases.fault("an answer that is no text", f"database {number}", "")
        for left in tmp_path.glob(f"{number}.sqlite*"):
            left.unlink()


@numbered(80, 600)
def test_databases_with_other_values(numbers: range, cases: Cases, answered: bytes, tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    whole = {"row": 1, "response": "a", "loglikelihoods": [-1.0, None], "error": None}
    for number in numbers:
        random_ = random.Random(f"answer {number}")
        file.write_bytes(answered)
        value: Any = altered(whole, random_)
        text: Any = written(value, random_)
        with sqlite3.connect(file) as connection:
            text = random_.choice([text, text.decode("utf-8", "replace"), text.decode("utf-8", "replace"), 7, 1.5])
            connection.execute("UPDATE answers SET answer = ? WHERE row = 1", [text])
        connection.close()
        outcome = cases.run(f"answer {number}: {str(text)[:200]}", partial(read_database, file), names=[file])
        if isinstance(outcome, tuple):
            one = outcome[1][1]
            likely = one.loglikelihoods
            sound = isinstance(one.response, str) and one.row == 1 and isinstance(one.error, str | None)
            sound &= likely is None or all(
                isinstance(v, float | int | None) and not isinstance(v, bool) for v in likely
            )
            if not sound:
                cases.fault("an answer of other types", f"answer {number}", str(one)[:300])
