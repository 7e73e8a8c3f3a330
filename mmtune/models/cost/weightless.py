"""Passes through a language model without weights, for counting operations and bytes before training.

Tensors on the meta device have a shape and no values, so tokens cannot be routed to experts by values. Each token goes
to the first expert instead, as many times as it has experts: this takes the same operations and memory as any other
routing. (torch's counter does not know transformers' grouped products, nor can torch infer their shapes in float32.)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mmtune.data.collate import PackLayout
from mmtune.models.adapters import add_adapters, weights_without_adapter
from mmtune.models.attention.packed import PACKED, packed_hidden, use_attention
from mmtune.models.decoding.alone import Alone
from mmtune.models.fitness.check import fitness_of
from mmtune.models.fitness.result import Fitness
from mmtune.models.language import decoder_blocks, empty_language, recompute_activations
from mmtune.models.spec import ModelSpec

if TYPE_CHECKING:
    from mmtune.models.vlm import TunableModel

_Model = TypeVar("_Model", bound=nn.Module)

FIRST_EXPERT = "mmtune_first_expert"
FEW_BLOCKS = 3  # the first block differs where embeddings are frozen; counts with 2 and 3 blocks give the cost of one


def language_without_weights(model: TunableModel) -> Any:
    """Return the language model on the meta device, with the same shapes and the same parameters to be trained.

    Returns:
        A new model in training mode, or the language model of `model` itself if it is on the meta device.
    """
    if next(model.language.parameters()).is_meta:
        return model.language
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        language = empty_language(model.spec.language)
        if model.spec.lora is not None:
            language = add_adapters(language, model.spec.lora)
    trained = {name for name, parameter in model.language.named_parameters() if parameter.requires_grad}
    for name, parameter in language.named_parameters():
        parameter.requires_grad_(name in trained)
    if getattr(model.base_language, "is_gradient_checkpointing", False):
        recompute_activations(language)
    return language.train()


def blocks_alike(base: Any, *, settings: bool = False) -> bool:
    """Return whether there are more than FEW_BLOCKS blocks, and all but the first have the same layers and parameters.

    Parameters are compared by name, shape and whether they are trained. With `settings`, the settings of the layers are
    compared, too, such as the window of attention.
    """
    blocks = decoder_blocks(base)
    kinds = {
        (
            tuple((type(m).__name__, _settings(m) if settings else None) for m in block.modules()),
            tuple((name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters()),
        )
        for block in blocks[1:]
    }
    return len(blocks) > FEW_BLOCKS and len(kinds) == 1


def _settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    found = vars(module).items()
    return tuple((name, value) for name, value in found if isinstance(value, bool | str) or name == "sliding_window")


def copy_with_blocks(model: _Model, base: Any, blocks: int) -> _Model:
    """Copy a model that contains `base`, with only the first `blocks` of the blocks of `base`.

    The number of blocks in the config is not changed.
    """
    left_out = decoder_blocks(base)[blocks:]
    copies: dict[int, Any] = {id(block): nn.Identity() for block in left_out}  # memo of deepcopy: in their place
    model = copy.deepcopy(model, copies)
    del decoder_blocks(copies[id(base)])[blocks:]
    return model


def adapters_note(spec: ModelSpec) -> str | None:
    """Describe in one line the weights of the blocks without an adapter or quantization, or return None."""
    if spec.lora is None:
        return None
    return weights_without_adapter(empty_language(spec.language), spec.lora, spec.quantise)


def decoder_pass(base: Any, fitness: Fitness, embeddings: torch.Tensor, documents: Sequence[int]) -> torch.Tensor:
    """Compute the last hidden states [tokens, hidden] of a pack of documents, within `without_values`.

    Args:
        base: causal language model of transformers.
        fitness: result of the model's trial, from `without_values`.
        embeddings: [tokens, hidden].
        documents: number of tokens of each document.
    """
    lengths = list(documents)
    places = torch.empty(len(embeddings), dtype=torch.int64, device=embeddings.device)
    if not fitness.packed:
        alone = Alone(base, fitness.body, by_embeddings=fitness.by_embeddings)
        return alone.documents(places, embeddings, lengths)
    none = places.new_empty(0)
    layout = PackLayout(tuple(lengths), places.new_empty(len(lengths) + 1, dtype=torch.int32), none, none)
    return packed_hidden(base.get_submodule(fitness.body), embeddings, places, layout)


@contextlib.contextmanager
def without_values(base: Any) -> Iterator[Fitness]:
    """Let a causal language model compute without looking at values, forward and in the backward pass's recomputation.

    Yields:
        Result of the model's trial, which says how it is computed. The trial may run now, so enter this context before
        a mode in which tensors have no values.
    """
    before = base.config._experts_implementation
    base.config._experts_implementation = FIRST_EXPERT
    try:
        fitness = fitness_of(base.config, base.name_or_path)
        with use_attention(base, PACKED) if fitness.packed else contextlib.nullcontext():
            yield fitness
    finally:
        base.config._experts_implementation = before


def _through_first_expert(
    experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Compute the layer of experts with the first expert alone, in place of transformers' grouped products.

    Args:
        experts: module of the experts.
        hidden: [tokens, hidden].
        chosen: [tokens, experts per token]; only its shape matters.
        weights: [tokens, experts per token], the router's weights.

    Returns:
        [tokens, hidden].
    """
    count = chosen.shape[-1]

    def product(rows: torch.Tensor, name: str) -> torch.Tensor:
        matrix = getattr(experts, name)[0]
        out = F.linear(rows, matrix.T if experts.is_transposed else matrix)
        return out + getattr(experts, f"{name}_bias")[0] if experts.has_bias else out

    rows = hidden.repeat_interleave(count, 0)
    if experts.has_gate:
        inner = experts._apply_gate(product(rows, "gate_up_proj"))
    else:
        inner = experts.act_fn(product(rows, "up_proj"))
    out = product(inner, "down_proj")
    if getattr(experts, "has_post_expert_norm", False):
        out = experts.post_expert_norm(out)
    return (out * weights.reshape(-1, 1)).view(len(hidden), count, -1).sum(1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(FIRST_EXPERT, _through_first_expert)
