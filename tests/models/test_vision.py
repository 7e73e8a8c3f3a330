from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from mmtune.common.errors import UserError
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import VisionTower, _tower_shape, build_tower, tower_shape


def timm_tower(weights: Path | str, **options: Any) -> VisionTower:
    return build_tower(VisionOptions("timm:test_vit", str(weights), **options))


def test_timm_features_are_those_of_the_block(tower_weights: Path) -> None:
    tower = timm_tower(tower_weights)
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    trunk = tower.trunk
    with torch.no_grad():
        hidden = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
        for block in trunk.blocks[:-1]:
            hidden = block(hidden)
    expected = hidden[:, trunk.num_prefix_tokens :]
    assert tower(pixels).shape == (2, tower.shape.num_tokens, tower.shape.width) == (2, 100, 64)
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-5, atol=1e-5)


def test_open_clip_drops_the_class_token_and_takes_the_last_block_but_one() -> None:
    tower = build_tower(VisionOptions("open_clip:ViT-S-32-alt", "random"))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    trunk: Any = tower.trunk
    with torch.no_grad():
        patches = trunk.conv1(pixels).flatten(2).transpose(1, 2)
        hidden = torch.cat([trunk.class_embedding.expand(2, 1, -1), patches], dim=1)
        hidden = trunk.ln_pre(hidden + trunk.positional_embedding)
        for block in trunk.transformer.resblocks[:-1]:
            hidden = block(hidden)
    assert tower.shape.num_tokens == 49
    torch.testing.assert_close(tower(pixels), hidden[:, 1:], rtol=1e-4, atol=1e-5)


def test_several_blocks_stand_side_by_side_and_are_pooled_to_the_grid(tower_weights: Path) -> None:
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    one, other = (timm_tower(tower_weights, blocks=[b])(pixels) for b in (1, 3))
    both = timm_tower(tower_weights, blocks=[1, 3], grid=2)
    expected = torch.cat([one, other], dim=2).reshape(1, 2, 5, 2, 5, 128).mean(dim=(2, 4)).reshape(1, 4, 128)
    assert (both.shape.num_tokens, both.shape.width) == (4, 128)
    torch.testing.assert_close(both(pixels), expected, rtol=1e-5, atol=1e-5)


def test_standardised_features_have_mean_0_and_deviation_1(tower_weights: Path) -> None:
    tower = timm_tower(tower_weights, standardise=True)
    pixels = torch.randn(40, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    tower.measure_standardisation(tower.encode(pixels))
    features = tower(pixels).flatten(0, 1)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(dim=0), torch.ones(64), atol=1e-3, rtol=0)
    assert tower.images_encoded == 80


def test_a_tower_stays_frozen_and_in_evaluation_mode(tower_weights: Path) -> None:
    tower = timm_tower(tower_weights).train()
    assert not any(m.training for m in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    assert not tower(torch.zeros(1, 3, 160, 160)).requires_grad


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (32, 32), (101, 7)])
@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_preprocess_is_plain_pil_and_numpy(tower_weights: Path, fit: Any, size: tuple[int, int]) -> None:
    width, height = size
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    tower = build_tower(VisionOptions("timm:test_efficientnet", "random", fit=fit))  # its mean is not grey
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    long, short = max(size), min(size)
    if fit == "pad":
        canvas = np.empty((long, long, 3), dtype=np.uint8)
        canvas[:] = (mean * 255).astype(int)
        top, left = (long - height) // 2, (long - width) // 2
        canvas[top : top + height, left : left + width] = values
        values = canvas
    shape = (160 * width // short, 160 * height // short) if fit == "crop" else (160, 160)
    resized = np.asarray(Image.fromarray(values).resize(shape, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 160) // 2, (resized.shape[1] - 160) // 2
    resized = resized[top : top + 160, left : left + 160]
    expected = ((resized / 255 - mean) / std).transpose(2, 0, 1)
    original = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    result = tower.preprocess(original)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_weights_of_another_port_load_in_order(tower_weights: Path, tmp_path: Path) -> None:
    state = torch.load(tower_weights, weights_only=True)
    renamed = tmp_path / "renamed.pth"
    torch.save({f"port.{i}": tensor for i, tensor in enumerate(state.values())}, renamed)
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(timm_tower(renamed)(pixels), timm_tower(tower_weights)(pixels), atol=0, rtol=0)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), other)
    with pytest.raises(UserError, match=r"other\.pth: holds the weights of another architecture"):
        timm_tower(other)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"damaged\.safetensors: cannot be read"):
        timm_tower(damaged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (VisionOptions("ViT-B-32", "random"), "write open_clip:NAME or timm:NAME, or clip:REFERENCE"),
        (VisionOptions("clips:ViT-B-32", "random"), "write open_clip:NAME or timm:NAME, or clip:REFERENCE"),
        (VisionOptions("clip:no/such-tower", "random"), "hf download no/such-tower"),
        (VisionOptions("timm:test_vit", "random", class_token=True), "only towers of CLIP's kind give a class token"),
        (VisionOptions("open_clip:ViT-B-33", "random"), "did you mean 'ViT-B-32'"),
        (VisionOptions("timm:test_vti", "random"), "did you mean 'test_vit"),
        (
            VisionOptions("timm:test_vit", "random", blocks=[99]),
            r"blocks \[99\]: timm:test_vit has no such block",
        ),
        (VisionOptions("timm:test_vit", "random", blocks=[-99]), "no such block"),
        (VisionOptions("timm:test_efficientnet", "random", blocks=[0, 2]), "give --model.vision.grid"),
        (VisionOptions("timm:test_vit", "random", grid=0), "grid 0: must be at least 1"),
        (VisionOptions("timm:test_vit", "random", blocks=[]), "blocks: names no block"),
        (VisionOptions("timm:test_vit", "no/such/file.pth"), "no such file"),
        (VisionOptions("timm:test_vit", "openai"), "timm towers take `pretrained` or a file"),
        (VisionOptions("open_clip:ViT-S-32-alt", "openai"), r"has the tags \(none\)"),
        (VisionOptions("open_clip:ViT-B-32", "opnai"), "has the tags openai, "),
        (VisionOptions("timm:test_vit", "package:no_such_package/x.pth"), "is not installed"),
    ],
)
def test_what_cannot_be_built_is_said(options: VisionOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tower(options)


def test_the_shape_needs_no_weights() -> None:
    shape = tower_shape(VisionOptions())  # the recipe's CLIP ViT-L/14-336, of which nothing is here
    assert (shape.num_tokens, shape.width, shape.size) == (576, 1024, 336)


@pytest.mark.parametrize("tower", ["open_clip:ViT-S-32-alt", "timm:test_vit", "clip"])
def test_neither_shape_nor_a_tower_without_weights_draws_random_numbers(tower: str, tmp_path: Path) -> None:
    if tower == "clip":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        CLIPVisionConfig(**sizes, image_size=64, patch_size=16).save_pretrained(tmp_path)
        tower = f"clip:{tmp_path}"
    options = VisionOptions(tower, "random", blocks=[-1])
    before = torch.random.get_rng_state()
    shape = _tower_shape.__wrapped__(options.tower, (-1,), None, False)
    assert all(parameter.is_meta for parameter in build_tower(options, meta=True).parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert shape == build_tower(options).shape
