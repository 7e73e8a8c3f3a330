"""What the tests of `mmtune chat` share: a tiny model that sees, saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import ModelSpec, VisionOptions


@pytest.fixture(scope="session")
def saved(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: it answers with any bytes, and goes on until it may not."""
    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    VisionLanguageModel.assemble(ModelSpec(str(llama), tower, template="chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(saved: Path) -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(saved)
