"""A model's fingerprint changes with each thing that its answers depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from chat_templates import FAMILIES, carrying
from tiny_models import save_llama

from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    family = FAMILIES["chatml, other eos"]
    tokenizer = carrying("{{ strftime_now('%d %b %Y') }}\n" + family.jinja, family.tokens)
    save_llama(folder, vocab_size=len(tokenizer), eos_token_id=256)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(base: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with adapters and a tower, which name the base and the tower's weights."""
    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    spec = ModelSpec(str(base), tower, template="tokenizer", lora=LoraOptions(r=2, alpha=4))
    folder = tmp_path_factory.mktemp("saved") / "model"
    VisionLanguageModel.assemble(spec).save_pretrained(folder)
    return folder


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_spec(model: Path, part: str, **values: object) -> None:
    file = model / "mmtune.json"
    saved = json.loads(file.read_text())
    (saved["spec"][part] if part else saved["spec"]).update(values)
    file.write_text(json.dumps(saved))


def swap(file: Path, name: str) -> None:
    """Exchange two values of a tensor, which leaves their sum as it is."""
    tensors = safetensors.torch.load_file(file)
    flat = tensors[name].flatten()
    flat[[5, 100]] = flat[[100, 5]]
    tensors[name] = flat.view(tensors[name].shape)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def swap_tower(tower: Path) -> None:
    state = torch.load(tower)
    flat = state["blocks.0.attn.qkv.weight"].flatten()
    flat[[5, 100]] = flat[[100, 5]]
    state["blocks.0.attn.qkv.weight"] = flat.view(state["blocks.0.attn.qkv.weight"].shape)
    torch.save(state, tower)


def add_to_tokenizer(base: Path) -> None:
    file = base / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(tokenizer))


def change_template(base: Path) -> None:
    file = base / "chat_template.jinja"
    file.write_text("Kindly. " + file.read_text())


INGREDIENTS: dict[str, Callable[[Path, Path, Path], None]] = {
    "chat template": lambda base, model, tower: change_template(base),
    "tokenizer": lambda base, model, tower: add_to_tokenizer(base),
    "end tokens": lambda base, model, tower: edit_json(base / "generation_config.json", eos_token_id=[256, 97]),
    "language config": lambda base, model, tower: edit_json(base / "config.json", rms_norm_eps=0.1),
    "language weights": lambda base, model, tower: swap(
        base / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    ),
    "tower weights": lambda base, model, tower: swap_tower(tower),
    "how photos are fitted": lambda base, model, tower: edit_spec(model, "vision", fit="crop"),
    "pooling": lambda base, model, tower: edit_spec(model, "vision", blocks=[-1]),
    "adapter's scale": lambda base, model, tower: edit_spec(model, "lora", alpha=8),
    "projector's weights": lambda base, model, tower: swap(model / "projector.safetensors", "projector.0.weight"),
    "template's name": lambda base, model, tower: edit_spec(model, "", template="chatml"),
    "template's date": lambda base, model, tower: edit_spec(model, "", template_date="2026-01-31"),
    "adapter's weights": lambda base, model, tower: swap(
        next((model / "adapter").glob("*.safetensors")),
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
    ),
}


@pytest.fixture
def copy(base: Path, saved: Path, tower_weights: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """All of it in other places, under other names."""
    parts = (tmp_path / "other_base", tmp_path / "other_model", tmp_path / "other_tower.pth")
    shutil.copytree(base, parts[0])
    shutil.copytree(saved, parts[1])
    shutil.copy(tower_weights, parts[2])
    edit_spec(parts[1], "", language=str(parts[0]))
    edit_spec(parts[1], "vision", weights=str(parts[2]))
    return parts


@pytest.fixture(scope="module")
def original(saved: Path) -> str:
    return VisionLanguageModel.from_pretrained(saved).fingerprint


def test_other_names_of_the_same_content_change_nothing(copy: tuple[Path, Path, Path], original: str) -> None:
    assert VisionLanguageModel.from_pretrained(copy[1]).fingerprint == original


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_each_ingredient_changes_it(copy: tuple[Path, Path, Path], original: str, ingredient: str) -> None:
    INGREDIENTS[ingredient](*copy)
    assert VisionLanguageModel.from_pretrained(copy[1]).fingerprint != original
