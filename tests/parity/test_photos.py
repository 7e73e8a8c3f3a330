"""Photos as transformers' image processors prepare them.

With Pillow the pixels are the same. transformers' other backend resizes with torchvision, whose bicubic filter rounds
otherwise; the difference is bounded here. A processor of AutoProcessor takes that one by default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPVisionConfig

from mmtune.models.interop.image_processor import processor_settings, read_processor
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import build_tower

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(40, 30), (30, 41), (32, 32), (101, 7), (640, 427), (336, 337), (333, 500), (20, 20)]
FITS = ["pad", "crop", "squash"]


@pytest.fixture(params=FITS)
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A tower that makes photos square in one way, and the folder of the processor that does the same."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, image_size=64, patch_size=16)
    config.save_pretrained(tmp_path)
    settings = processor_settings(request.param, 64, MEAN, STD)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    fit, read = read_processor(str(tmp_path), 64)
    assert (fit, read) == (request.param, {"size": 64, "mean": MEAN, "std": STD})
    return build_tower(VisionOptions(f"clip:{tmp_path}", "random", fit=fit)), tmp_path


def photo(size: tuple[int, int]) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("size", SIZES)
def test_with_pillow_every_pixel_is_the_same(prepared: tuple[Any, Path], size: tuple[int, int]) -> None:
    tower, folder = prepared
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(photo(size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(tower.preprocess(photo(size)), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_with_torchvision_the_difference_is_rounding(prepared: tuple[Any, Path], size: tuple[int, int]) -> None:
    """At most two of 255 steps a channel for noise, the hardest case: both round, between the two directions too."""
    tower, folder = prepared
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    theirs = processor(photo(size), return_tensors="pt")["pixel_values"][0]
    steps = (tower.preprocess(photo(size)) - theirs).abs() * torch.tensor(STD)[:, None, None] * 255
    assert float(steps.max()) < 2.01
    assert float(steps.mean()) < 0.5
