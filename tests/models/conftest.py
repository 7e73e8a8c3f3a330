"""What the model tests share: models of two blocks, and packs for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.data.collate import PackedBatch, pack
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import Example, encode
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

Build = Callable[..., VisionLanguageModel]


@pytest.fixture(scope="session")
def build(llama: Path, tower_weights: Path, device: torch.device) -> Build:
    """Put a tiny model together: `vision` with timm's test_vit, `lora` with adapters that are not zero."""

    def make(*, vision: bool = False, lora: LoraOptions | None = None, **options: Any) -> VisionLanguageModel:
        tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2) if vision else None
        spec = ModelSpec(str(llama), tower, template="chatml", lora=lora, **options)
        model = VisionLanguageModel.assemble(spec)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        return model.to(device).eval()

    return make


@pytest.fixture(scope="session")
def text_model(build: Build) -> VisionLanguageModel:
    return build()


@pytest.fixture(scope="session")
def seeing_model(build: Build) -> VisionLanguageModel:
    return build(vision=True)


@pytest.fixture(scope="session")
def example(photos: list[Image.Image]) -> Callable[..., Example]:
    """Tokenise a question and an answer, with the photos of the given numbers."""

    def make(
        model: VisionLanguageModel, question: str, answer: str, seen: tuple[int, ...] = (), row: int = 1
    ) -> Example:
        files = []
        for number in seen:
            stream = io.BytesIO()
            photos[number].save(stream, "PNG")
            files.append(stream.getvalue())
        said = Turn("user", "<image>" * len(seen) + question)
        conversation = Conversation((said, Turn("assistant", answer)), tuple(files), "rows", row)
        return encode(conversation, model.inputs(), 4096)

    return make


@pytest.fixture(scope="session")
def packed() -> Callable[[VisionLanguageModel, list[Example]], PackedBatch]:
    return lambda model, examples: pack(examples, model.inputs()).to(model.device)
