"""What fuzzing found, each with the least input that shows it."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command_lines import check, parse_training
from PIL import Image

from mmtune.analysis.arms import TrainedRun
from mmtune.analysis.compare import compare
from mmtune.analysis.records import read_answers, read_metrics
from mmtune.common.errors import RowError, UserError
from mmtune.common.files import locate, read_json
from mmtune.data.images import open_photo
from mmtune.data.mixture import Mixture
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.run.database import Database
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.models.features import FeatureStore
from mmtune.models.interop.weights import Weights, read_tensors
from mmtune.models.language import load_config, load_language, load_tokenizer
from mmtune.models.saving import read_spec
from mmtune.models.spec import LoraOptions, ModelSpec, PhotoFit, VisionOptions
from mmtune.models.vision import TowerShape, build_tower, preprocessing
from mmtune.training.checkpoint_io import WholeCheckpoints, newest_whole
from mmtune.training.module import InstructionTuning

# Rows


def test_a_text_in_parquet_that_is_not_utf8_costs_its_own_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    broken = pa.array([b"a", b"\xb3", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken, "completion": ["1", "2", "3"]}), file)
    bad = BadRows("skip")
    assert [row.turns[0].text for row in read_conversations(str(file), bad_rows=bad)] == ["a", "c"]
    assert [message.split(": ")[:2] for message in bad.skipped] == [[f"{file}, row 2", "cannot be read"]]


def test_a_date_in_parquet_that_python_has_not_costs_its_own_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    dates = pa.array([1, 10**18], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["1", "2"], "at": dates}), file)
    bad = BadRows("skip")
    assert [row.row for row in read_conversations(str(file), bad_rows=bad)] == [1]
    assert len(bad.skipped) == 1


def test_the_checksums_of_a_parquet_file_are_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    table = pa.table({"prompt": ["the question"], "completion": ["the answer"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, write_page_checksum=True, **plain)
    file.write_bytes(file.read_bytes().replace(b"the answer", b"the bnswer"))
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_conversations(str(file)))


@pytest.mark.parametrize(
    "row", [{"x" * 10_000: 1}, {"messages": [{"role": "x" * 10_000, "content": ""}]}, {"prompt": "a", "completion": "b",
            "images": "x" * 10_000}, {"messages": [{"role": "user", "content": [{"type": "x" * 10_000}]}]}]
)  # fmt: skip
def test_what_is_said_of_a_row_quotes_little_of_it(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(RowError) as error:
        list(read_conversations(str(tmp_path / "rows.jsonl")))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "hit", [{"source": 1, "row": 2}, {"source": ["a"], "row": 2}, {"source": "a", "row": 1e999}, {"source": "a"}, [], 3]
)
def test_hits_that_name_no_row_are_refused(hit: Any, tmp_path: Path) -> None:
    (tmp_path / "hits.json").write_text(json.dumps({"hits": [hit]}))
    with pytest.raises(UserError, match="needs 'hits', a list of objects with 'source' and 'row'"):
        Mixture(["rows.jsonl"], leave_out=str(tmp_path / "hits.json")).draw(BadRows(), lambda row: row)


# Files


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("~nobody-of-this-name/x", "no such home folder"),
        ("x" * 300, "File name too long"),
        ("package:__main__/x", "write package:NAME/file"),
    ],
)
def test_references_that_the_system_cannot_follow(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(reference)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": "\0"}'], ids=["deep", "long number", "NUL"])
def test_json_that_python_gives_up_on(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


# Photos


def test_a_photo_of_100000_by_1_pixels_is_padded_without_a_square_of_30_gb() -> None:
    photo = Image.new("RGB", (100_000, 1), (255, 0, 0))
    shape = TowerShape(num_tokens=1, width=1, size=28, mean=(0.0, 0.0, 1.0), std=(1.0, 1.0, 1.0))
    pad, crop = (preprocessing(VisionOptions(fit=fit), shape)(photo) for fit in ("pad", "crop"))
    assert [int((row[0] > 0.5).sum()) for row in pad.transpose(0, 1)] == [0] * 13 + [28] + [0] * 14
    assert torch.equal(crop[0], torch.ones(28, 28))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (9000, 40)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_very_long_photos_become_what_others_do(
    size: tuple[int, int], fit: PhotoFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done with photos too long to be padded first differs little from padding first."""
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    shape = TowerShape(num_tokens=1, width=1, size=56, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    preprocess = preprocessing(VisionOptions(fit=fit), shape)
    usual = preprocess(photo)
    monkeypatch.setattr("mmtune.models.vision.MOST_PIXELS", 1)
    assert (preprocess(photo) - usual).abs().mean() < 0.02


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.eps")
    with pytest.raises(RowError, match="of the format EPS, which is not read; save it as PNG"):
        open_photo(tmp_path / "photo.eps", "row 1")


def test_whatever_pillow_raises_is_said_of_the_row() -> None:
    with pytest.raises(RowError, match="row 1: the photo of 148 bytes cannot be decoded: Truncated File Read"):
        open_photo(b"BM" + b"\x11" * 146, "row 1")


# Task files


def task_file(folder: Path, **changes: Any) -> Path:
    columns = {"question": ["a"], "label": [0], "choices": [["one", "two"]]}
    rows = folder / "hub" / "me" / "mine" / "default" / "test.parquet"
    rows.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), rows)
    task = {"name": "mine", "version": 1, "modality": "language", "dataset": {"path": "me/mine", "split": "test"},
            "prompt": "{{ question }}", "target": "{{ label | letter }}", "answer": "letter", "options": "choices",
            "max_tokens": 8, "metrics": ["accuracy"]}  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(task | changes))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{{ 9 ** (9 ** 9) }}", r"\*\* is not for templates"),
        ("{{ 'a' * 100000000000 }}", r"\* makes more than 1,000,000"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
    ],
)
def test_a_template_cannot_ask_for_hours_or_all_memory(prompt: str, message: str, tmp_path: Path) -> None:
    file = task_file(tmp_path, prompt=prompt)

    def ask() -> None:
        task = load_suite(file).tasks[0]
        Renderer(task, "blind").question(0, load_rows(task, tmp_path, limit=None).rows[0][1])

    with pytest.raises(UserError, match=message) as error:
        ask()
    assert str(error.value).startswith(f"{file}: prompt: ")


@pytest.mark.parametrize("expression", [" ", "label) or (label", "label == 0 }} {{ label"])
def test_an_expression_must_be_one_without_parentheses_around_it(expression: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: filter: not a jinja2 template"):
        load_suite(task_file(tmp_path, filter=expression))


def test_an_expression_with_a_number_that_is_infinite_fails_on_its_row(tmp_path: Path) -> None:
    task = load_suite(task_file(tmp_path, filter="label < 1e999")).tasks[0]
    with pytest.raises(UserError, match="filter: row 0: name 'inf' is not defined"):
        load_rows(task, tmp_path, limit=None, keep=Renderer(task, "blind").keeps)


def test_a_split_whose_name_no_file_can_have_is_missing(tmp_path: Path) -> None:
    task = load_suite(task_file(tmp_path, dataset={"path": "me/mine", "split": "x" * 300})).tasks[0]
    with pytest.raises(UserError, match="no such file, and task mine needs it"):
        load_rows(task, tmp_path, limit=None)


def rows_of_task(folder: Path, table: pa.Table, **options: Any) -> tuple[Any, Path]:
    """The task of `task_file` with other rows, and their file."""
    task = load_suite(task_file(folder)).tasks[0]
    file = folder / "hub" / "me" / "mine" / "default" / "test.parquet"
    pq.write_table(table, file, **options)
    return task, file


@pytest.mark.parametrize(
    ("was", "now"), [(b"the name", b"the \xffame"), (b"the text", b"the t\xffxt")], ids=["of a column", "of a row"]
)
def test_texts_of_a_task_that_are_not_utf8_are_refused(was: bytes, now: bytes, tmp_path: Path) -> None:
    table = pa.table({"question": ["the text"], "label": [0], "choices": [["a", "b"]], "the name": [1]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    task, file = rows_of_task(tmp_path, table, **plain)
    file.write_bytes(file.read_bytes().replace(was, now))
    with pytest.raises(UserError, match=r"test\.parquet: (not a readable parquet file|damaged) \('utf-8' codec"):
        load_rows(task, tmp_path, limit=None)


def test_the_checksums_of_a_task_s_rows_are_looked_at(tmp_path: Path) -> None:
    table = pa.table({"question": ["the text"], "label": [0], "choices": [["a", "b"]]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    task, file = rows_of_task(tmp_path, table, write_page_checksum=True, **plain)
    file.write_bytes(file.read_bytes().replace(b"the text", b"the next"))
    with pytest.raises(UserError, match=r"test\.parquet: damaged .*; download it again"):
        load_rows(task, tmp_path, limit=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a, b]\n: c", "not valid YAML"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("[" * 1000, "nested too deeply"),
        (
            "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst")),
            "aliases",
        ),
        ("&a [*a]", "aliases"),
    ],
)
def test_yaml_that_python_gives_up_on(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"suite\.yaml.*{message}"):
        load_suite(tmp_path / "suite.yaml")


def test_a_message_is_never_longer_than_a_screen() -> None:
    said = str(UserError(f"begin {'x' * 10_000} end"))
    assert (said[:5], said[-3:]) == ("begin", "end")
    assert len(said) < 2000


# Results


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


# Tables


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,completion\na,b,c\n")
    with pytest.raises(UserError, match=r"rows\.csv: two columns are named 'completion'"):
        list(read_conversations(str(tmp_path / "rows.csv")))


# Configs and flags


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


# Models


@pytest.mark.parametrize(("blocks", "message"), [(3, "the weights lack 9 tensors"), (1, "has no place for 9 tensors")])
def test_a_language_model_of_other_blocks_than_its_config_is_refused(
    blocks: int, message: str, llama: Path, tmp_path: Path
) -> None:
    """Alone, transformers goes on with random weights, or with a part of the blocks."""
    shutil.copytree(llama, tmp_path / "model")
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": blocks}))
    with pytest.raises(UserError, match=message):
        load_language(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "change"),
    [("config.json", {"use_cache": 1e999}), ("tokenizer_config.json", {"pad_token": ["a"]}),
     ("tokenizer_config.json", {"model_max_length": "."}), ("tokenizer.json", {"model": {"type": "BPE", "vocab": 3}})],
)  # fmt: skip
def test_settings_that_libraries_stumble_over_are_refused(
    file: str, change: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path / "model")
    settings = json.loads((llama / file).read_text())
    (tmp_path / "model" / file).write_text(json.dumps(settings | change))

    def load() -> None:
        load_config(str(tmp_path / "model"))
        load_tokenizer(str(tmp_path / "model"))

    with pytest.raises(UserError, match="cannot load the language model or its tokenizer"):
        load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": 7}, "language: must be text, not 7"),
        ({"seed": "a"}, "seed: must be a whole number, not 'a'"),
        ({"lora": {"r": "4"}}, "lora: r: must be a whole number, not '4'"),
        ({"lora": {"rr": 4}}, r"lora: unknown key 'rr'; did you mean 'r'\?"),
        ({"vision": {"blocks": "-2"}}, "vision: blocks: must be a list, not '-2'"),
        ({"vision": {"weights": None}}, "vision: weights: must be text, not None"),
        ({"projector": "x"}, "projector: unknown 'x'; choose one of: linear, mlp2x_gelu"),
    ],
)
def test_parts_of_a_model_of_another_type_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^mmtune\.json: {message}; save or copy the model again"):
        ModelSpec.from_dict({"language": "a"} | change, "mmtune.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"has a value that no such model has \(KeyError: 'r'\)"),
        ({"r": "4"}, "lora: r: must be a whole number, not '4'"),
        ({"r": 4, "lora_alpha": [8]}, r"lora: alpha: must be a whole number, not \[8\]"),
        ({"r": 4, "base_model_name_or_path": ["a"]}, "base_model_name_or_path"),
    ],
)
def test_an_adapter_of_other_values_is_refused(
    changes: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    config = json.loads((llama / "config.json").read_text()) | {"mm_vision_tower": str(tmp_path)}
    clip = {"model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 2}
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text(json.dumps(clip))
    (tmp_path / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "tower"}))
    adapter = {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": str(llama)}
    if changes:
        adapter |= {"lora_alpha": 8, **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match=message) as error:
        read_spec(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("options", [{"r": 10**10, "alpha": 8}, {"r": 4, "alpha": 10**400}])
def test_a_rank_or_alpha_beyond_every_layer_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"--model\.lora\.\w+: must be at most 1,048,576"):
        LoraOptions(**options).check()


def test_a_pickle_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.bin: "):
            read_tensors(file)


def test_an_index_with_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    with pytest.raises(UserError, match="half downloaded"):
        Weights.of(str(tmp_path))


def test_a_checkpoint_whose_names_are_not_utf8_is_not_whole(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    file = tmp_path / "last.ckpt"
    file.write_bytes(file.read_bytes().replace(b"data.pkl", b"dat\x8c.pkl"))
    assert newest_whole(tmp_path) == file
    with pytest.raises(UserError, match=r"last\.ckpt: a damaged checkpoint"):
        WholeCheckpoints().load_checkpoint(file)


@pytest.mark.parametrize("settings", [{}, {"optimizer": 3}, {"optimizer": {"learning_rate": 1.0}}])
def test_a_checkpoint_of_another_program_is_refused(settings: dict[str, Any]) -> None:
    checkpoint = {"pytorch-lightning_version": "2.6", "state_dict": {}, **settings}
    with pytest.raises(UserError, match="--ckpt_path: the checkpoint of another program"):
        InstructionTuning(language="a").on_load_checkpoint(checkpoint)


def test_a_photo_that_is_stored_twice_makes_the_store_begin_anew(
    tower_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path))
    store = FeatureStore(build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2)))
    features = {bytes([n]) * 32: torch.full(store.row_shape, float(n)) for n in range(3)}
    store.add(features)
    digests = store.folder / "photos.bin"
    digests.write_bytes(digests.read_bytes().replace(b"\1", b"\2"))
    store = FeatureStore(build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2)))
    store.add(features)
    reader = store.reader({digest: digest for digest in features})
    assert all(torch.equal(reader(digest), tensor) for digest, tensor in features.items())
