"""Damaged models of every layout, tensors and checkpoints: loaded as they are, or refused by file; no code is run."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from fuzz_cases import Cases, numbered
from llava_builders import write_llava
from mutations import altered, damaged, written
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.interop.weights import Weights, read_tensors
from mmtune.models.language import load_config, load_language, load_tokenizer
from mmtune.models.saving import read_spec
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions
from mmtune.training.checkpoint_io import WholeCheckpoints, newest_whole


@pytest.fixture(scope="module")
def layouts(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of ours, a llava-hf folder, LLaVA's released layout with adapters, and a language model."""
    folder = tmp_path_factory.mktemp("layouts")
    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    spec = ModelSpec(str(llama), tower, template="chatml", lora=LoraOptions(r=4, alpha=8))
    VisionLanguageModel.assemble(spec).save_pretrained(folder / "ours")
    write_llava(folder / "hf", llama)
    write_clip(folder / "clip")
    write_released(folder / "released", llama, folder / "clip")
    shutil.copytree(llama, folder / "language")
    return {path.name: path for path in folder.iterdir()}


def write_clip(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))


def write_released(folder: Path, llama: Path, clip: Path) -> None:
    """Adapters and a projector as LLaVA's own code writes them."""
    folder.mkdir()
    config = json.loads((llama / "config.json").read_text())
    tower_of = {"mm_vision_tower": str(clip), "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    config |= tower_of | {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
               "bias": "none", "base_model_name_or_path": str(llama)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    layer, width = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight", config["hidden_size"]
    shapes = {"A": (4, width), "B": (width, 4)}
    torch.save(
        {layer.format(n, part): torch.zeros(shape) for n in range(2) for part, shape in shapes.items()},
        folder / "adapter_model.bin",
    )
    projector = {"0.weight": (width, 32), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    torch.save(
        {f"base_model.model.model.mm_projector.{name}": torch.zeros(shape) for name, shape in projector.items()},
        folder / "non_lora_trainables.bin",
    )


class Copy:
    """A copy of a folder in which one file at a time is damaged."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self.folder = folder / whole.name
        shutil.copytree(whole, self.folder)

    def damage(self, name: str, random: random.Random) -> bytes:
        """Damage a file, and give what it held."""
        file = self.folder / name
        content = file.read_bytes()
        data = damaged(content, random)
        if file.suffix == ".json" and random.random() < 0.8:
            data = written(altered(json.loads(content), random), random)
        file.write_bytes(data)
        return content


def over(
    cases: Cases, numbers: range, name: str, copy: Copy, files: list[str], load: Callable[[str], Any], *also: str
) -> None:
    """Load a folder with one of its files damaged at a time."""
    for number in numbers:
        random_ = random.Random(f"{name} {number}")
        file = files[number % len(files)]
        content = copy.damage(file, random_)
        there = (copy.folder / file).read_bytes()
        cases.run(
            f"{name} {number}: {file} {there[:500]!r}",
            partial(load, str(copy.folder)),
            names=[copy.folder, "--", *also],
        )
        (copy.folder / file).write_bytes(content)


def test_what_is_damaged_is_sound_before(layouts: dict[str, Path]) -> None:
    for name in ("ours", "hf", "released"):
        VisionLanguageModel.from_pretrained(layouts[name])
    load_language(str(layouts["language"]))


@numbered(40, 1500)
def test_what_a_model_is_made_of(numbers: range, cases: Cases, layouts: dict[str, Path], tmp_path: Path) -> None:
    for name, files in (
        ("ours", ["mmtune.json"]),
        ("hf", ["config.json", "processor_config.json", "tokenizer_config.json"]),
        ("released", ["config.json", "adapter_config.json"]),
    ):
        over(cases, numbers, f"{name} spec", Copy(layouts[name], tmp_path), files, read_spec)


@numbered(5, 200)
def test_whole_models(numbers: range, cases: Cases, layouts: dict[str, Path], tmp_path: Path, llama: Path) -> None:
    for name in ("ours", "hf", "released"):
        copy = Copy(layouts[name], tmp_path)
        files = [str(path.relative_to(copy.folder)) for path in sorted(copy.folder.rglob("*")) if path.is_file()]
        # the language model that an adapter names is complained of by that name
        missing = ("cannot load the language", "no such file or folder")
        over(cases, numbers, name, copy, files, VisionLanguageModel.from_pretrained, *missing)


def loaded(folder: str) -> None:
    load_config(folder)
    load_tokenizer(folder)("a b", add_special_tokens=False)
    load_language(folder)


@numbered(12, 400)
def test_language_models(numbers: range, cases: Cases, layouts: dict[str, Path], tmp_path: Path) -> None:
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json"]
    over(cases, numbers, "language", Copy(layouts["language"], tmp_path), files, loaded)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def checkpoint() -> dict[str, Any]:
    weights = {f"layer.{n}.weight": torch.arange(40.0).reshape(8, 5) for n in range(3)}
    return {"pytorch-lightning_version": "2.6", "state_dict": weights, "epoch": 1, "global_step": 5, "callbacks": {}}


@pytest.fixture(scope="module")
def tensor_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tensors")
    weights = checkpoint()["state_dict"]
    safetensors.torch.save_file(weights, folder / "a.safetensors")
    torch.save(weights, folder / "new.bin")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    (folder / "code.bin").write_bytes(pickle.dumps({"a": Code(folder / "was run"), "b": [1, "x"]}))
    torch.save({"a": Code(folder / "was run")}, folder / "code inside.bin")
    torch.save(checkpoint(), folder / "last.ckpt")
    torch.save({**checkpoint(), "callbacks": Code(folder / "was run")}, folder / "code.ckpt")
    return sorted(folder.iterdir())


@numbered(120, 3000)
def test_files_of_tensors(numbers: range, cases: Cases, tensor_files: list[Path], tmp_path: Path) -> None:
    whole = checkpoint()["state_dict"]
    for number in numbers:
        random_ = random.Random(f"tensors {number}")
        source = random_.choice([file for file in tensor_files if file.suffix != ".ckpt"])
        file = tmp_path / source.name
        file.write_bytes(damaged(source.read_bytes(), random_) if number % 10 else source.read_bytes())
        outcome = cases.run(f"tensors {number}: {source.name}", partial(read_tensors, file), names=[file])
        if isinstance(outcome, dict) and not all(isinstance(tensor, torch.Tensor) for tensor in outcome.values()):
            cases.fault("no tensors", f"tensors {number}", "")
        if "code" in source.name and not number % 10 and not isinstance(outcome, UserError):
            cases.fault("a pickle with code was read", source.name, "")
    assert all(tensor.shape == (8, 5) for tensor in whole.values())
    assert not list(tensor_files[0].parent.glob("was run"))


@numbered(60, 1000)
def test_indices_of_weights(numbers: range, cases: Cases, tensor_files: list[Path], tmp_path: Path) -> None:
    shutil.copy(next(file for file in tensor_files if file.suffix == ".safetensors"), tmp_path / "part-1.safetensors")
    whole = {"metadata": {}, "weight_map": {f"layer.{n}.weight": "part-1.safetensors" for n in range(3)}}
    file = tmp_path / "model.safetensors.index.json"
    for number in numbers:
        random_ = random.Random(f"index {number}")
        data = written(altered(whole, random_), random_)
        file.write_bytes(data)

        def read() -> Any:
            held = Weights.of(str(tmp_path))
            return held and held.read(held.files)

        cases.run(f"index {number}: {data[:400]!r}", read, names=[tmp_path])


@numbered(80, 1500)
def test_checkpoints(numbers: range, cases: Cases, tensor_files: list[Path], tmp_path: Path) -> None:
    sources = {file.name: file.read_bytes() for file in tensor_files if file.suffix == ".ckpt"}
    file = tmp_path / "last.ckpt"
    for number in numbers:
        random_ = random.Random(f"checkpoint {number}")
        name = random_.choice(list(sources))
        file.write_bytes(damaged(sources[name], random_) if number % 10 else sources[name])
        outcome = cases.run(
            f"checkpoint {number}: {name}", lambda: WholeCheckpoints().load_checkpoint(file), names=[file]
        )
        whole = cases.run(f"newest {number}: {name}", lambda: newest_whole(tmp_path))
        if whole != file:
            cases.fault("the only checkpoint is not named", f"checkpoint {number}", str(whole))
        if "code" in name and not number % 10 and not isinstance(outcome, UserError):
            cases.fault("a pickle with code was read", name, "")
    assert not list(tensor_files[0].parent.glob("was run"))
