"""CLIP towers of open_clip and of transformers: the same features from the same weights, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from mmtune.common.errors import UserError
from mmtune.models.interop import clip
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import build_tower

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
PUBLISHED = {  # as the hub has them; hidden_act is quick_gelu unless they say otherwise
    "ViT-B-32-quickgelu": {},
    "ViT-B-32": {"hidden_act": "gelu"},
    "ViT-L-14-quickgelu": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}
PUBLISHED["ViT-L-14-336-quickgelu"] = {**PUBLISHED["ViT-L-14-quickgelu"], "image_size": 336}
PUBLISHED["ViT-L-14"] = {**PUBLISHED["ViT-L-14-quickgelu"], "hidden_act": "gelu"}


def small(hidden_act: str) -> CLIPVisionModel:
    config = CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, hidden_act=hidden_act, layer_norm_eps=1e-4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPVisionModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("class_token", [False, True])
def test_every_block_has_the_features_of_transformers(tmp_path: Path, hidden_act: str, class_token: bool) -> None:
    theirs = small(hidden_act)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        states = theirs(pixels(32), output_hidden_states=True).hidden_states
    for layer in (-1, -2, 1, 3):
        block = clip.block_of_layer(layer, 3, "layer")
        tower = build_tower(VisionOptions(f"clip:{tmp_path}", "pretrained", blocks=[block], class_token=class_token))
        expected = states[layer] if class_token else states[layer][:, 1:]
        torch.testing.assert_close(tower(pixels(32)), expected, rtol=1e-4, atol=1e-4)
        assert clip.layer_of_block(block) == layer


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_there_and_back_is_exact(hidden_act: str) -> None:
    theirs = small(hidden_act)
    trunk = clip.build_trunk(theirs.config)
    trunk.load_state_dict(clip.to_open_clip(theirs.state_dict()))
    back = clip.to_transformers(trunk.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    described = clip.describe_trunk(trunk)
    keys = (*SMALL, "image_size", "patch_size", "hidden_act", "layer_norm_eps")
    assert all(getattr(described, key) == getattr(theirs.config, key) for key in keys)


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_the_published_towers_are_open_clips(name: str, published: dict[str, Any]) -> None:
    """Their configs name the same architecture, down to the activation; no weights of theirs are here."""
    with torch.device("meta"):
        trunk = open_clip.create_model(name, load_weights=False, device="meta").visual
        config = CLIPVisionConfig(**published)
        described = clip.describe_trunk(trunk)
        rebuilt = clip.build_trunk(config).state_dict()
        theirs = CLIPVisionModel(config).state_dict()
    assert described.to_dict() == {**config.to_dict(), "projection_dim": described.projection_dim}
    own = {n: t.shape for n, t in trunk.state_dict().items() if n != "proj"}
    assert own == {n: t.shape for n, t in rebuilt.items()}
    converted = clip.to_transformers(trunk.state_dict())
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "ViT-B-32-quickgelu"])
def test_a_tower_of_open_clips_own_has_the_same_features_in_transformers(name: str) -> None:
    tower = build_tower(VisionOptions(f"open_clip:{name}", "random"))
    theirs = CLIPVisionModel(clip.describe_trunk(tower.trunk)).eval()
    theirs.load_state_dict(clip.to_transformers(tower.trunk.state_dict()))
    with torch.no_grad():
        expected = theirs(pixels(224), output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(tower(pixels(224)), expected, rtol=1e-4, atol=1e-4)


def test_a_whole_clip_gives_its_tower(tmp_path: Path) -> None:
    """As `openai/clip-vit-large-patch14-336` is published: text tower, projections and position ids beside it."""
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**SMALL, "vocab_size": 99}, vision_config=vision)
    model = CLIPModel(config).eval()
    state = dict(model.state_dict())
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    tower = build_tower(VisionOptions(f"clip:{tmp_path}", "pretrained"))
    with torch.no_grad():
        expected = model.vision_model(pixels(32), output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(tower(pixels(32)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("RN50", "another network"), ("ViT-B-16-SigLIP", "another network"), ("coca_ViT-B-32", "transformers'")],
)
def test_another_network_is_refused(name: str, reason: str) -> None:
    trunk = open_clip.create_model(name, load_weights=False, device="meta").visual
    with pytest.raises(UserError, match=reason):
        clip.describe_trunk(trunk)
