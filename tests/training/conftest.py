"""What the training tests share: rows, and `mmtune fit` on a model of two blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from mmtune.cli.main import main

Fit = Callable[..., int]
QUESTIONS = [(f"What comes after {i}?", f"It is {i + 1}" + "." * (i % 5)) for i in range(40)]


@pytest.fixture(scope="session")
def text_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in QUESTIONS))
    return file


@pytest.fixture(scope="session")
def visual_rows(tmp_path_factory: pytest.TempPathFactory, photos: list[Image.Image]) -> Path:
    folder = tmp_path_factory.mktemp("visual")
    rows = []
    for number, photo in enumerate(photos):
        photo.save(folder / f"{number}.png")
        turns = [("human", "<image>\nWhat is this?"), ("gpt", f"Number {number}" + "!" * number)]
        rows.append(
            {
                "id": number,
                "image": f"{number}.png",
                "conversations": [{"from": f, "value": v} for f, v in turns],
            }
        )
    (folder / "visual.json").write_text(json.dumps(rows))
    return folder / "visual.json"


@pytest.fixture(scope="session")
def vision_flags(tower_weights: Path) -> list[str]:
    return [
        "--model.vision.tower=timm:test_vit",
        f"--model.vision.weights={tower_weights}",
        "--model.vision.grid=2",
    ]


@pytest.fixture(scope="session")
def base_flags(llama: Path) -> list[str]:
    return [
        f"--model.language={llama}",
        "--model.template=chatml",
        "--model.learning_rate=0.01",
        "--data.max_length=256",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


@pytest.fixture(scope="session")
def lora_flags() -> list[str]:
    return ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0.1"]


@pytest.fixture(scope="session")
def fit(base_flags: list[str]) -> Fit:
    """`mmtune fit` on the tiny model; the exit code."""

    def run(out: Path, *flags: str, base: bool = True) -> int:
        return main(["fit", *(base_flags if base else []), f"--out={out}", *flags])

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's model."""
    return {
        f"{file.relative_to(run)}:{name}": tensor
        for file in sorted((run / "model").rglob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def assert_same_weights(run: Path, other: Path) -> None:
    """Bit for bit."""
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert ours
    assert not different


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


@pytest.fixture(scope="session")
def same_weights() -> Callable[[Path, Path], None]:
    return assert_same_weights


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return weights


@pytest.fixture(scope="session")
def read_run() -> Callable[[Path, str], Any]:
    return read
