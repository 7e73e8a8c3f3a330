"""Passes through a language model without weights, in which operations and bytes are counted before any are spent.

Tensors on the meta device have a shape and no values. Nothing can be routed to experts by values that are not there, so
each token is given to the first expert, as often as it has experts: this takes the operations and the memory of any
other routing. (transformers' grouped products are not known to torch's counter, and in float32 not to its shapes.)
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
FEW_BLOCKS = 3  # the first differs where embeddings are frozen, and one is one more


def language_without_weights(model: TunableModel) -> Any:
    """The language model of the same shape on the meta device, with the same weights to be trained.

    Returns:
        It itself where it has no weights.
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
    """Whether there are more than a few blocks and all but the first have the same layers, trained or not.

    With `settings`, their layers' own settings are the same, too: windows of attention, for one.
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
    """A copy of a model of which `base` is a part, with the first so many of base's blocks.

    The config still names as many as there were.
    """
    left_out = decoder_blocks(base)[blocks:]
    copies: dict[int, Any] = {id(block): nn.Identity() for block in left_out}  # for deepcopy, they are copied already
    model = copy.deepcopy(model, copies)
    del decoder_blocks(copies[id(base)])[blocks:]
    return model


def adapters_note(spec: ModelSpec) -> str | None:
    """Which share of a model of experts has no adapter, as one line; None where there is nothing to say."""
    if spec.lora is None:
        return None
    return weights_without_adapter(empty_language(spec.language), spec.lora, spec.quantise)


def decoder_pass(base: Any, fitness: Fitness, embeddings: torch.Tensor, documents: Sequence[int]) -> torch.Tensor:
    """The last hidden states [tokens, hidden] of a pack of documents, within `without_values`.

    Args:
        base: a causal language model of transformers.
        fitness: how it is computed, from `without_values`.
        embeddings: [tokens, hidden].
        documents: tokens of each.
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
    """Within, a causal language model looks at no values: forward, and backward where it recomputes.

    Yields:
        How it is computed; it may be tried for that, so this is entered while tensors still have values.
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
    """As transformers' grouped products: hidden [tokens, hidden], chosen and weights [tokens, experts a token]."""
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
