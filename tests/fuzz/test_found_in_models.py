"""What fuzzing found in models, checkpoints and stored features, each with the least input that shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.common.errors import UserError
from mmtune.models.features import FeatureStore
from mmtune.models.interop.weights import Weights, read_tensors
from mmtune.models.language import load_config, load_language, load_tokenizer
from mmtune.models.saving import read_spec
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions
from mmtune.models.vision import build_tower
from mmtune.training.checkpoint_io import WholeCheckpoints, newest_whole
from mmtune.training.module import InstructionTuning


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
