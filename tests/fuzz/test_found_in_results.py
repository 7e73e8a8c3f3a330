"""What fuzzing found in results and in numbers, each with the least input that shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import check, parse_training

from mmtune.analysis.compare import compare
from mmtune.analysis.records import read_answers, read_metrics
from mmtune.analysis.variants import TrainedRun
from mmtune.common.errors import UserError
from mmtune.data.mixture import Mixture
from mmtune.data.sources.readers import read_conversations
from mmtune.evaluation.run.database import Database
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer
from mmtune.models.spec import ModelSpec
from mmtune.training.module import InstructionTuning


@pytest.mark.parametrize(
    ("text", "message"),
    [("step,loss\n0,3.0\n1,3.00.1\n", "row 2: damaged"), ("step,loss\n0,1,2\n", "row 1: damaged"),
     ("step,loss\nnan,1\n", "row 1: damaged"), ("step,loss\n0,\udcb2\n", "row 1: damaged")],
)  # fmt: skip
def test_damaged_metrics_are_refused_by_row(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"metrics\.csv, {message}"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"score": 2}, "score: must be at most 1, not 2"),
        ({"score": -0.5}, "score: must be at least 0, not -0.5"),
        ({"score": 10**400}, "score: must be"),
        ({"score": float("nan")}, "score: must be"),
        ({"id": [None]}, r"id: must be a whole number or text, not \[None\]"),
        ({"id": True}, "id: must be a whole number or text, not True"),
        ({"prediction": 1}, "prediction: must be text, not 1"),
    ],
)
def test_samples_with_scores_that_are_none_are_refused(sample: dict[str, Any], message: str, tmp_path: Path) -> None:
    sound = {"id": 1, "prompt": "a", "response": "b", "prediction": "b", "target": "c", "score": 0.5}
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "t.jsonl").write_text(json.dumps(sound | sample) + "\n")
    with pytest.raises(UserError, match=rf"t\.jsonl, line 1: {message}.*; run the evaluation again"):
        read_answers(tmp_path, "t")


@pytest.mark.parametrize(
    ("flops", "message"),
    [
        ({"language": 1, "tower": "x"}, "flops: tower: must be a number, not 'x'"),
        ({"language": float("inf")}, "flops: language: must be a finite number, not inf"),
        ({"language": True}, "flops: language: must be a number, not True"),
        ({"tower": 1}, "flops: key 'language' is missing"),
        (3, "flops: must be a mapping of keys to values, not 3"),
    ],
)
def test_ledgers_with_operations_that_are_no_numbers_are_refused(flops: Any, message: str, tmp_path: Path) -> None:
    tokens = {"text": 1, "image": 0}
    ledger = {"train_s": 1.0, "samples": 1, "tower_passes": 0, "tokens": tokens, "flops": flops}
    (tmp_path / "ledger.json").write_text(json.dumps(ledger))
    (tmp_path / "results.json").write_text(json.dumps({"tasks": {}}))
    with pytest.raises(UserError, match=rf"ledger\.json: {message}; it was not written by mmtune fit"):
        TrainedRun.read(tmp_path, tmp_path)


@pytest.mark.parametrize("seconds", [float("inf"), True, 10**400])
def test_a_comparison_leaves_out_seconds_that_are_no_number(seconds: Any, tmp_path: Path) -> None:
    task = {"modality": "language", "version": 1, "n": 1, "metric": "accuracy", "score": 1.0, "stderr": 0.0,
            "unparsed": 0.0, "protocol": "blind", "dataset": {}, "seconds": seconds}  # fmt: skip
    sample = {"id": 1, "prompt": "a", "response": "b", "prediction": "b", "target": "b", "score": 1.0}
    for name in ("a", "b"):
        (tmp_path / name / "samples").mkdir(parents=True)
        results = {"suite": float("nan"), "tasks": {"t": task}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        (tmp_path / name / "samples" / "t.jsonl").write_text(json.dumps(sample) + "\n")
    found = compare([tmp_path / "a", tmp_path / "b"]).as_dict()
    json.dumps(found, allow_nan=False)
    assert [side["seconds"] for side in found["evaluations"]] == [None, None]


@pytest.mark.parametrize(
    "answer",
    [b"{}", b'{"row": 1}', b'{"row": 2, "response": ""}', b'{"row": 1, "response": 3}', b"[" * 5000, b'"\xb2"', b"7",
     b'{"row": 1, "response": "", "loglikelihoods": ["a"]}', b'{"row": 1, "response": "", "loglikelihoods": [NaN]}'],
)  # fmt: skip
def test_damaged_answers_are_refused(answer: bytes, tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    database = Database(file)
    database.add("key", 0, [Answer(1, "a")], dict.fromkeys(COSTS, 1.0))
    database._connection.execute("UPDATE answers SET answer = CAST(? AS TEXT)", [answer])
    with pytest.raises(UserError, match=r"answers\.sqlite: damaged \(an answer cannot be read\)"):
        database.answers("key")
    database.close()


@pytest.mark.parametrize(
    ("there", "damage", "message"),
    [
        (b"chunk INTEGER", b"chunk \xa6NTEGER", "it holds 'chunks', which is no table of answers"),
        (b"tableanswersanswers", b"table\xa6nswersanswers", "SQLite cannot read it"),
    ],
)
def test_a_database_whose_tables_are_no_text_is_refused(
    there: bytes, damage: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.sqlite"
    Database(file).close()
    file.write_bytes(file.read_bytes().replace(there, damage))
    with pytest.raises(UserError, match=rf"answers\.sqlite: damaged \({message}\)"):
        Database(file)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,completion\na,b,c\n")
    with pytest.raises(UserError, match=r"rows\.csv: two columns are named 'completion'"):
        list(read_conversations(str(tmp_path / "rows.csv")))


@pytest.mark.parametrize(
    ("flag", "message"),
    [(f"--data={'9' * 5000}", "--data=999"), (f"--model.weight_decay={'9' * 400}", "--model.weight_decay=9"),
     ("--seed_everything=-1", "--seed_everything: -1 is not in bounds")],
)  # fmt: skip
def test_numbers_that_cannot_be_computed_with_are_refused(flag: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        parse_training(["fit", flag])


def test_a_number_of_hundreds_of_digits_is_refused_by_every_command() -> None:
    with pytest.raises(UserError, match=r"^--temperature=999.*cannot be read"):
        check(["chat", "--model=a", f"--temperature={'9' * 400}"])


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_seeds_that_numpy_or_torch_does_not_take_are_refused(seed: int) -> None:
    between = "must be a whole number from 0 to 4,294,967,295"
    with pytest.raises(UserError, match=f"--data.train.seed: {between}"):
        Mixture(["rows.jsonl"], seed=seed)
    with pytest.raises(UserError, match=f"--model.seed: {between}"):
        InstructionTuning(language="a", seed=seed)
    with pytest.raises(UserError, match=f"mmtune.json: seed: {between}"):
        ModelSpec.from_dict({"language": "a", "seed": seed}, "mmtune.json")


def test_a_config_with_a_number_of_hundreds_of_digits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"model": {"weight_decay": 10**400}}))
    with pytest.raises(UserError, match=r"^--config: cannot be read"):
        parse_training(["fit", "--config", str(tmp_path / "a.yaml")])
