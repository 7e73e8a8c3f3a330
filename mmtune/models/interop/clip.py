"""Conversion of CLIP's vision tower between open_clip and transformers: architecture, weights and block numbers.

The same network has two sets of names. open_clip keeps query, key and value in one matrix; transformers' features
need no projection into the space shared with text, so that is dropped. The class embedding, the layer norms before and
after the blocks and the position embeddings are kept. OpenAI's weights were trained with the approximation
`x * sigmoid(1.702 x)` (quick-gelu) and LAION's with the true GELU; the activation of a tower is converted too.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig

from mmtune.common.errors import UserError
from mmtune.models.interop.weights import State, Weights, compare, read_settings
from mmtune.models.pretrained import check_counts

_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    **{
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
        for kind in ("weight", "bias")
    },
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BACK = {theirs: ours for ours, theirs in _NAMES.items()}
_BACK_IN_BLOCK = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
_TRANSFORMERS_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = ("q", "k", "v")
_ACTIVATIONS = ("quick_gelu", "gelu")


def read_vision_config(reference: str) -> CLIPVisionConfig:
    """Read the vision part of a CLIP or LLaVA folder's config.

    Args:
        reference: folder or hub id, of `openai/clip-vit-large-patch14-336` for example, or of a `llava-hf` model.

    Raises:
        UserError: there is no config.json, or the tower that it describes is not CLIP's.
    """
    settings = read_settings(reference, "config.json")
    if settings is None:
        raise UserError(
            f"{reference}: expected the config.json of a CLIP tower, found none; give a folder that has one, or run "
            f"`hf download {reference}` where there is a network"
        )
    described = settings.get("vision_config", settings)
    kind = described.get("model_type", "clip_vision_model" if settings.get("model_type") == "clip" else None)
    if kind not in ("clip_vision_model", "clip"):
        raise UserError(f"{reference}: expected a CLIP vision tower (clip_vision_model), its config.json has {kind!r}")
    if settings.get("model_type") == "llava":
        # transformers fills what a LLaVA config leaves out with the values of ViT-L/14-336
        from transformers import LlavaConfig

        config = LlavaConfig.from_dict(settings).vision_config
    else:
        config = CLIPVisionConfig.from_dict(described)
    check_counts(vars(config), f"{reference}: config.json")
    _check(config, reference)
    return config


def build_trunk(config: CLIPVisionConfig) -> nn.Module:
    """Build open_clip's tower of this architecture, with initial weights (on the meta device, without)."""
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    trunk = VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # it is multiplied back and rounded down
        output_dim=1,
        act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
        norm_layer=functools.partial(LayerNorm, eps=config.layer_norm_eps),
    )
    trunk.proj = None
    return trunk


def load_trunk(trunk: nn.Module, weights: str) -> None:
    """Load the weights of a CLIP or LLaVA folder or hub repository into a trunk.

    Raises:
        UserError: there are no weights, or they are those of another architecture.
    """
    held = Weights.of(weights)
    state = None if held is None else tower_state(held)
    if state is None:
        raise UserError(f"{weights}: expected the weights of a CLIP vision tower, found none")
    theirs = to_transformers(trunk.state_dict())
    compare(state, {name: tuple(tensor.shape) for name, tensor in theirs.items()}, weights)
    trunk.load_state_dict(to_open_clip(state))


def tower_state(weights: Weights) -> State | None:
    """Read the tower's tensors of a CLIP or LLaVA model, under CLIPVisionModel's names; None if it has no tower."""
    renamed = {}
    for name in weights.files:
        inner = name.rpartition("vision_tower.")[2].removeprefix("vision_model.")
        begins = inner.split(".")[0]
        if begins in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm") and not inner.endswith("position_ids"):
            renamed[name] = inner
    if not renamed:
        return None
    return {renamed[name]: tensor for name, tensor in weights.read(renamed).items()}


def to_open_clip(state: State) -> State:
    """Convert the tensors of a tower from CLIPVisionModel's names to open_clip's."""
    result: State = {}
    for name, tensor in state.items():
        match = _TRANSFORMERS_BLOCK.fullmatch(name)
        if match is None:
            result[_BACK[name]] = tensor
        elif match[2] in _BACK_IN_BLOCK:
            result[f"transformer.resblocks.{match[1]}.{_BACK_IN_BLOCK[match[2]]}.{match[3]}"] = tensor
        elif match[2] == "self_attn.q_proj":
            parts = [state[f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[3]}"] for part in _QKV]
            result[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
    return result


def to_transformers(state: State) -> State:
    """Convert the tensors of a tower from open_clip's names to CLIPVisionModel's, without the projection.

    Raises:
        KeyError: a tensor has no counterpart.
    """
    result: State = {}
    for name, tensor in state.items():
        match = _OPEN_CLIP_BLOCK.fullmatch(name)
        if name == "proj":
            continue
        if match is None:
            result[_NAMES[name]] = tensor
        elif match[2] == "attn.in_proj":
            for part, values in zip(_QKV, tensor.chunk(3), strict=True):
                result[f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[3]}"] = values
        else:
            result[f"encoder.layers.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"] = tensor
    return {name: tensor.contiguous() for name, tensor in result.items()}


def describe_trunk(trunk: Any) -> CLIPVisionConfig:
    """Return transformers' config of an open_clip tower.

    Raises:
        UserError: transformers' CLIPVisionModel cannot compute what the tower computes.
    """
    from open_clip.transformer import QuickGELU, VisionTransformer

    if not isinstance(trunk, VisionTransformer):
        raise UserError(f"the tower is a {type(trunk).__name__}, and transformers' CLIPVisionModel is another network")
    try:
        names = set(to_transformers(trunk.state_dict()))
        block = trunk.transformer.resblocks[0]
        act, epsilon = block.mlp.gelu, block.ln_1.eps
    except (KeyError, AttributeError) as error:
        raise UserError(f"the tower has {error}, which transformers' CLIPVisionModel has not") from None
    heights, patches = set(trunk.image_size), set(trunk.patch_size)
    config = CLIPVisionConfig(
        hidden_size=trunk.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(trunk.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=max(heights),
        patch_size=max(patches),
        hidden_act="quick_gelu" if isinstance(act, QuickGELU) else "gelu",
        layer_norm_eps=epsilon,
    )
    true_gelu = isinstance(act, nn.GELU) and act.approximate == "none"
    if len(heights | {0}) > 2 or len(patches | {0}) > 2 or not (true_gelu or isinstance(act, QuickGELU)):
        raise UserError("the tower is not square, or its activation is neither gelu nor quick-gelu")
    with torch.device("meta"):
        if names != set(to_transformers(build_trunk(config).state_dict())):
            raise UserError("the tower lacks a part that transformers' CLIPVisionModel has (a layer norm or a bias)")
    return config


def block_of_layer(layer: int, layers: int, where: str) -> int:
    """Return the block whose output is `layer` of transformers' `hidden_states`, which begin with the embeddings.

    Raises:
        UserError: there is no such layer, or it is the embeddings; the message begins with `where`.
    """
    if not -layers <= layer <= layers or layer == 0:
        raise UserError(f"{where} {layer}: expected a block's output, -{layers} to -1 or 1 to {layers}")
    return layer if layer < 0 else layer - 1


def layer_of_block(block: int) -> int:
    """Return the index of a block's output in transformers' `hidden_states`."""
    return block if block < 0 else block + 1


def _check(config: CLIPVisionConfig, reference: str) -> None:
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"{reference}: vision_config.hidden_act: expected {' or '.join(_ACTIVATIONS)}, found {config.hidden_act}"
        )
    for key in ("image_size", "patch_size"):
        if not isinstance(getattr(config, key), int):
            raise UserError(f"{reference}: vision_config.{key}: expected one number, found {getattr(config, key)}")
