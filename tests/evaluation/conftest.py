"""What the evaluation tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tuned_model(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of two blocks that sees, with adapters that are not zero."""
    import torch

    from mmtune.generation.generator import VisionLanguageModel
    from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    spec = ModelSpec(str(llama), tower, template="chatml", lora=LoraOptions(r=4, alpha=8))
    model = VisionLanguageModel.assemble(spec)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    folder = tmp_path_factory.mktemp("tuned") / "model"
    model.save_pretrained(folder)
    return folder
