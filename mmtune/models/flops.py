"""Floating-point operations of a training step, from the shapes that were computed.

A multiplication and an addition count as two operations. A linear layer of n weights costs 2n a token forward, 2n
backward for its input's gradient and 2n for its weights' (arXiv 2001.08361, section 2.1, split by what is needed):
frozen weights need no gradient, and nothing is passed back to before the first weight that is trained. Attention over
a document of T tokens costs 4·T²·(heads x head size) a layer forward and twice that backward (kernels that compute the
scores again in the backward pass, as FlashAttention does, spend half as much on top; it is not counted).
tests/models/test_flops.py holds this against torch's own counter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmtune.models.vision import build_tower

if TYPE_CHECKING:
    from mmtune.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class StepFlops:
    """Operations by part of the model."""

    language: int
    projector: int
    tower: int


class FlopsCounter:
    """Counts the operations of training steps of one model, under the stage it is set to."""

    def __init__(self, model: VisionLanguageModel) -> None:
        base = model.base_language
        config = base.config
        head = base.get_output_embeddings()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._attention = 4 * head_size * config.num_attention_heads
        self._layers = _decoder_layers(base.base_model)
        self._dora = [m for m in self._layers if m.adapted] if model.spec.lora and model.spec.lora.dora else []
        self._dora_base_again = bool(self._dora) and model.spec.lora is not None and model.spec.lora.dropout > 0
        self._blocks = max(1, config.num_hidden_layers)
        self._embeddings_trained = bool(base.get_input_embeddings().weight.requires_grad)
        self._checkpointed = bool(getattr(base, "is_gradient_checkpointing", False))
        self._head, self._head_trained = _size(head), bool(head.weight.requires_grad)
        self._projector = [m for m in model.projector.modules() if isinstance(m, nn.Linear)] if model.projector else []
        self._projector_trained = any(layer.weight.requires_grad for layer in self._projector)
        self._tower_per_photo = tower_flops(model) if model.tower else 0
        self._costs = {photos: self._language(photos) for photos in (False, True)}

    def step(
        self, *, documents: Sequence[int], supervised: int, image_tokens: int, photos: int, head_twice: bool = False
    ) -> StepFlops:
        """Operations of one forward and backward pass over a pack.

        Args:
            documents: tokens of each document of the pack.
            supervised: tokens learnt from.
            image_tokens: tokens that are photo features.
            photos: encoded by the tower.
            head_twice: the logits are computed again in the backward pass (a loss in chunks).
        """
        cost = self._costs[image_tokens > 0 and self._projector_trained]
        squares = sum(tokens**2 for tokens in documents)
        language = cost.per_token * sum(documents) + cost.per_square * squares + cost.fixed
        again = head_twice and (cost.learns or self._head_trained)
        language += 2 * supervised * self._head * (1 + cost.learns + self._head_trained + again)
        projector = sum(
            2
            * image_tokens
            * _size(layer)
            * (1 + layer.weight.requires_grad + (self._projector_trained and position > 0))
            for position, layer in enumerate(self._projector)
        )
        return StepFlops(language, projector, photos * self._tower_per_photo)

    def _language(self, photos_learn: bool) -> _Cost:
        """What the blocks cost, where the gradient must reach the photos' features and where not."""
        arriving = self._embeddings_trained or photos_learn  # whether the layers' inputs need a gradient
        forward = backward = blocks_back = 0
        groups: dict[tuple[int, int], list[_Layer]] = {}
        for layer in self._layers:
            groups.setdefault((layer.block, layer.place), []).append(layer)
        for (_, place), layers in sorted(groups.items()):
            for layer in layers:
                forward += 2 * layer.size
                backward += 2 * layer.size * (layer.trained + (arriving or layer.behind_trained))
                if self._dora_base_again and layer.adapted:
                    forward += 2 * layer.size
                    backward += 2 * layer.size * arriving
            arriving = arriving or any(layer.trained for layer in layers)
            blocks_back += place == 0 and arriving
        attention, attention_back = self._attention * self._blocks, 2 * self._attention * blocks_back
        # DoRA multiplies its two factors out, once a pass, for the norm of the weights
        fixed = sum(2 * layer.rank * layer.inputs * (layer.inputs + layer.outputs) for layer in self._dora)
        if self._checkpointed and arriving:
            return _Cost(2 * forward + backward, 2 * attention + attention_back, 2 * fixed, arriving)
        return _Cost(forward + backward, attention + attention_back, fixed, arriving)


@dataclass(frozen=True)
class _Cost:
    """Operations a token, a squared token and a pass; and whether a gradient comes through at all."""

    per_token: int
    per_square: int
    fixed: int
    learns: bool


@dataclass(frozen=True)
class _Layer:
    """A linear layer of the decoder: its block, its place there (0 reads the block's input), its adapter's rank."""

    block: int
    place: int
    size: int
    trained: bool
    behind_trained: bool
    adapted: bool
    inputs: int
    outputs: int
    rank: int


def _decoder_layers(decoder: nn.Module) -> list[_Layer]:
    modules = dict(decoder.named_modules())
    found = []
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            continue
        block = re.search(r"layers\.(\d+)\.", name)
        first = modules.get(name.replace(".lora_B.", ".lora_A.")) if ".lora_B." in name else None
        factor = (
            modules.get(name.removesuffix("base_layer") + "lora_A.default") if name.endswith(".base_layer") else None
        )
        found.append(
            _Layer(
                block=int(block[1]) if block else 0,
                place=_place(name),
                size=_size(module),
                trained=bool(module.weight.requires_grad),
                behind_trained=isinstance(first, nn.Linear) and bool(first.weight.requires_grad),
                adapted=factor is not None,
                inputs=module.in_features,
                outputs=module.out_features,
                rank=factor.out_features if isinstance(factor, nn.Linear) else 0,
            )
        )
    return found


def _place(name: str) -> int:
    """Where in its block a layer stands; layers in the same place read the same input."""
    for place, parts in enumerate((_READS_BLOCK, _READS_ATTENTION, _READS_MIDDLE)):
        if any(part in name for part in parts):
            return place
    return 3


_READS_BLOCK = ("q_proj", "k_proj", "v_proj", "qkv_proj")
_READS_ATTENTION = ("o_proj", "out_proj")
_READS_MIDDLE = ("gate_proj", "up_proj", "gate_up_proj", "fc1")


def tower_flops(model: VisionLanguageModel) -> int:
    """Operations to encode one photo, counted on a copy without weights."""
    assert model.spec.vision is not None
    tower = build_tower(model.spec.vision, meta=True)
    size = tower.shape.size
    with FlopCounterMode(display=False) as counter:
        tower(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops())


def matrix_product_peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the fastest of several large matrix products: what a device can do at best.

    Takes about half a second; a machine that is busy with other work gives less.
    """
    on_cuda = torch.device(device).type == "cuda"
    size = 8192 if on_cuda else 1024
    generator = torch.Generator(device).manual_seed(0)  # of its own: measuring must not change what training draws
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - begun < 0.5:
        start = time.perf_counter()
        a @ b
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all; a weight packed into 4 bits counts as what it stands for."""
    sizes: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            packed = name == "weight" and hasattr(parameter, "quant_state") and hasattr(module, "in_features")
            sizes[parameter] = _size(module) if packed else parameter.numel()
    return sum(size for parameter, size in sizes.items() if parameter.requires_grad), sum(sizes.values())


def _size(layer: Any) -> int:
    return int(layer.in_features * layer.out_features)  # not numel(): quantised weights are packed
