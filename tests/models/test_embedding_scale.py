"""Photos begin as large as words, wherever a family scales its embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import PromptEncoder
from mmtune.models.spec import ModelSpec, VisionOptions
from tests.models.families import save


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "granite", "qwen3_moe"])
def test_features_begin_with_the_deviation_of_words(
    family: str, llama: Path, tower_weights: Path, tmp_path: Path
) -> None:
    folder = save(family, tmp_path / family, llama)
    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    model = VisionLanguageModel.assemble(ModelSpec(str(folder), tower, template="chatml"))
    encoder = PromptEncoder(model)
    words = encoder.embed(encoder.token_ids("".join(map(chr, range(32, 127))))).detach()
    assert model.projector is not None
    features = torch.randn(500, model.tower.shape.width, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    with torch.no_grad():
        seen = model.projector(features)
    assert 0.3 < float(seen.std() / words.std()) < 3  # it was 0.18 in this Gemma 3, the root of 1 / 32
    # the first weights are drawn for the words as the model takes them, and stay what they are when it is saved
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
