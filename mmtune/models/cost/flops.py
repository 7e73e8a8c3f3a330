"""Floating-point operations of a training step, from the shapes of its tensors.

A multiplication and an addition count as two operations. Torch's FlopCounterMode counts the blocks of the language
model, in passes through the same architecture without weights (`mmtune.models.cost.weightless`). The count covers every
part of a model (linear layers, transformers' Conv1D, experts and their router, adapters, DoRA, recomputed activations),
and depends on which parameters are frozen.
A linear layer of n weights costs 2n per token forward, 2n backward for the gradient of its input and 2n for that of its
weights (arXiv 2001.08361, section 2.1, by part); a gradient that is not needed costs nothing. Attention over a document
of T tokens costs 4·T²·(heads x head size) per layer forward and twice that backward. Kernels that recompute the scores
in the backward pass, as FlashAttention does, spend half as much again, which is not counted. tests/models/test_flops.py
compares the results with torch's counts of real steps.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmtune.common.errors import UserError, reason
from mmtune.models.cost.weightless import (
    FEW_BLOCKS,
    blocks_alike,
    copy_with_blocks,
    decoder_pass,
    language_without_weights,
    without_values,
)
from mmtune.models.fitness.result import Fitness
from mmtune.models.language import decoder_blocks
from mmtune.models.outcomes import keep_outcome, outcome_key, read_outcome
from mmtune.models.vision import build_tower

if TYPE_CHECKING:
    from mmtune.models.vlm import TunableModel

_SOME = 8  # tokens; the cost of a document is a polynomial of degree two in its length, which three lengths determine
_CHUNKS = (32, 64, 128, 256, 512)  # candidate chunk sizes, in tokens, where the config has none: powers of two
_IN_CHUNKS = re.compile(r"chunk_size|block_size")


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a step by part of the model."""

    language: int
    projector: int
    tower: int


class FlopsCounter:
    """Counts the operations of training steps of one model, with the parameters that its stage trains."""

    def __init__(self, model: TunableModel) -> None:
        head = model.base_language.get_output_embeddings()
        self._head, self._head_trained = _size(head), bool(head.weight.requires_grad)
        self._projector = [m for m in model.projector.modules() if isinstance(m, nn.Linear)] if model.projector else []
        self._projector_trained = any(layer.weight.requires_grad for layer in self._projector)
        self._tower_per_image = tower_flops(model) if model.tower else 0
        self._costs = {learn: _cost_of(model, learn) for learn in {False, self._projector_trained}}

    def step(
        self, *, documents: Sequence[int], supervised: int, image_tokens: int, images: int, head_twice: bool = False
    ) -> StepFlops:
        """Return the operations of one forward and backward pass over a pack.

        Args:
            documents: number of tokens of each document of the pack.
            supervised: number of supervised tokens.
            image_tokens: number of tokens that are image features.
            images: number of images encoded by the vision tower.
            head_twice: whether the backward pass recomputes the logits (a loss in chunks).
        """
        cost = self._costs[image_tokens > 0 and self._projector_trained]
        language = cost.of(documents)
        again = head_twice and (cost.learns or self._head_trained)
        language += 2 * supervised * self._head * (1 + cost.learns + self._head_trained + again)
        projector = sum(
            2
            * image_tokens
            * _size(layer)
            * (1 + layer.weight.requires_grad + (self._projector_trained and position > 0))
            for position, layer in enumerate(self._projector)
        )
        return StepFlops(language, projector, images * self._tower_per_image)


@dataclass(frozen=True)
class BlocksCost:
    """Coefficients of the operations of a forward and backward pass through the blocks.

    A document of n tokens in c chunks costs per_token·n + per_square·n² + per_square_in_chunk·Σm² (m the tokens of each
    chunk) + per_chunk·(c − 1) + per_square_of_chunks·(c² − 1), and each pass costs `fixed`.

    Attributes:
        per_token: operations per token.
        per_square: operations per square of a document's tokens.
        fixed: operations per pass; a pass holds all documents, or one where they are computed apart.
        per_square_in_chunk: operations per square of a chunk's tokens (MiniMax's, within 1 % of torch's count).
        per_chunk: operations per chunk of a document after its first; layers with recurrent states pad the last chunk.
        per_square_of_chunks: operations per square of a document's number of chunks.
        chunk: tokens of a chunk, 0 for a model without chunks.
        apart: whether each document has a pass of its own.
        learns: whether there is a backward pass: the hidden states require a gradient.
    """

    per_token: int
    per_square: int
    fixed: int
    per_square_in_chunk: int
    per_chunk: int
    per_square_of_chunks: int
    chunk: int
    apart: bool
    learns: bool

    def of(self, documents: Sequence[int]) -> int:
        """Return the operations for documents with these numbers of tokens."""
        passes = len(documents) if self.apart else 1
        total = self.per_token * sum(documents) + self.per_square * sum(n**2 for n in documents) + self.fixed * passes
        if self.chunk:
            chunks = [-(-tokens // self.chunk) for tokens in documents]
            last = [(tokens - 1) % self.chunk + 1 for tokens in documents]
            squares = sum((n - 1) * self.chunk**2 + rest**2 for n, rest in zip(chunks, last, strict=True))
            total += self.per_square_in_chunk * squares + self.per_chunk * sum(n - 1 for n in chunks)
            total += self.per_square_of_chunks * sum(n**2 - 1 for n in chunks)
        return total

    def with_more(self, fewer: BlocksCost, others: int) -> BlocksCost:
        """Extrapolate this cost to `others` more blocks; `fewer` is the cost with one block less than this one has."""
        names = ("per_token", "per_square", "fixed", "per_square_in_chunk", "per_chunk", "per_square_of_chunks")
        grown = {name: getattr(self, name) + others * (getattr(self, name) - getattr(fewer, name)) for name in names}
        return dataclasses.replace(self, **grown)


def blocks_cost(language: Any, *, images_learn: bool = False) -> BlocksCost:
    """Count the operations of a forward and backward pass through the blocks.

    Args:
        language: causal language model without weights, with `requires_grad` set on its trained parameters.
        images_learn: whether the gradient must reach the input embeddings although the word embeddings are frozen.

    Raises:
        UserError: the operations depend on the values of tensors, not only on their shapes.
    """
    base = _base(language)
    count = len(decoder_blocks(base))
    if not blocks_alike(base):
        return _with_blocks(language, count, images_learn)
    fewer, more = (_with_blocks(language, blocks, images_learn) for blocks in (FEW_BLOCKS - 1, FEW_BLOCKS))
    return more.with_more(fewer, count - FEW_BLOCKS)


_KNOWN: dict[str, BlocksCost] = {}  # counting takes seconds; a plan, a sweep and the next run need the same counts
_FOLDER = "operations"  # folder in the cache
_COUNTED = ("attention/*.py", "cost/*.py", "decoding/*.py", "fitness/*.py", "adapters.py", "head.py", "language.py")


def _cost_of(model: TunableModel, images_learn: bool) -> BlocksCost:
    language = model.base_language
    images_learn = images_learn or language.get_input_embeddings().weight.requires_grad  # words learn, as images do
    trained = [name for name, parameter in model.language.named_parameters() if parameter.requires_grad]
    checkpointed = bool(getattr(language, "is_gradient_checkpointing", False))
    settings = [
        language.config.to_dict(),
        type(language).__name__,
        model.spec.lora,
        trained,
        checkpointed,
        images_learn,
    ]
    key = outcome_key(settings, _COUNTED, ("torch", "transformers", "peft"))
    if key not in _KNOWN:
        cost = read_outcome(_FOLDER, key, BlocksCost)
        if cost is None:
            cost = blocks_cost(language_without_weights(model), images_learn=images_learn)
            keep_outcome(_FOLDER, key, cost)
        _KNOWN[key] = cost
    return _KNOWN[key]


def _with_blocks(language: Any, blocks: int, images_learn: bool) -> BlocksCost:
    """Count the cost of a model that has only the first `blocks` of its blocks."""
    language = copy_with_blocks(language, _base(language), blocks)
    base = _base(language)
    # the fitness is that of the whole model, and its trial needs values: look it up before num_hidden_layers changes
    with without_values(base) as fitness, FakeTensorMode():
        base.config.get_text_config(decoder=True).num_hidden_layers = blocks
        language._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        measured = functools.cache(lambda tokens: _blocks_pass(base, fitness, tokens, images_learn))
        cost = _by_length(lambda tokens: measured(tokens)[0], _chunks(base, fitness))
        return dataclasses.replace(cost, apart=not fitness.packed, learns=measured(_SOME)[1])


def _chunks(base: Any, fitness: Fitness) -> list[int]:
    """Return the candidate sizes, in tokens, of the chunks in which a model computes states; [] for no chunks."""
    if fitness.packed or not _IN_CHUNKS.search(inspect.getsource(sys.modules[type(base).__module__])):
        return []
    settings = base.config.get_text_config(decoder=True).to_dict()
    told = {value for name, value in settings.items() if _IN_CHUNKS.search(name) and isinstance(value, int)}
    return sorted({size for size in told if size > 3 * _SOME} or _CHUNKS)


def _by_length(count: Callable[[int], int], chunks: Sequence[int]) -> BlocksCost:
    """Fit the cost of a document to operation counts at a few lengths.

    Args:
        count: returns the operations for a document of a number of tokens.
        chunks: candidate chunk sizes; the first at which the cost deviates from a polynomial of degree two is taken.
    """
    once, twice, thrice = (count(times * _SOME) for times in (1, 2, 3))
    per_square = (thrice - 2 * twice + once) // (2 * _SOME**2)
    per_token = (twice - once) // _SOME - 3 * _SOME * per_square
    fixed = once - _SOME * per_token - _SOME**2 * per_square
    smooth = BlocksCost(per_token, per_square, fixed, 0, 0, 0, 0, apart=False, learns=False)
    for size in chunks:
        beyond, full, next_beyond = size + 1, 2 * size, 2 * size + 1
        if second := count(beyond) - smooth.of([beyond]):
            # some kernels pad the last chunk, others compute the square of the tokens it holds
            inside = (second - count(full) + smooth.of([full])) // (2 * size * (size - 1))
            second += 2 * size * inside
            third = count(next_beyond) - smooth.of([next_beyond]) + (2 * size**2 + 4 * size) * inside
            squared = (third - 2 * second) // 2
            return dataclasses.replace(
                smooth,
                per_square=per_square - inside,
                per_square_in_chunk=inside,
                per_chunk=second - 3 * squared,
                per_square_of_chunks=squared,
                chunk=size,
            )
    return smooth


def _blocks_pass(base: Any, fitness: Fitness, tokens: int, images_learn: bool) -> tuple[int, bool]:
    """Return the operations of a pass with one document, and whether it had a backward pass.

    Raises:
        UserError: the operations depend on the values of tensors, not only on their shapes.
    """
    words = base.get_input_embeddings().weight
    embeddings = torch.empty(tokens, words.shape[1], dtype=words.dtype)
    embeddings.requires_grad_(images_learn or words.requires_grad)
    try:
        # the plain kernel, with 4 products backward: fused kernels recompute the scores
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            hidden = decoder_pass(base, fitness, embeddings, [tokens])
            if hidden.requires_grad:
                hidden.sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{type(base).__name__}: what it computes for a token cannot be told from its shape ({reason(error)}), so "
            "a run's operations cannot be counted; take another language model"
        ) from error
    return int(counter.get_total_flops()), hidden.requires_grad


def _base(language: Any) -> Any:
    """Return the transformers model without peft's wrapper."""
    return language.get_base_model() if hasattr(language, "peft_config") else language


def tower_flops(model: TunableModel) -> int:
    """Count the operations of encoding one image, on a copy of the vision tower without weights."""
    assert model.spec.vision is not None
    tower = build_tower(model.spec.vision, meta=True)
    size = tower.shape.size
    with FlopCounterMode(display=False) as counter:
        tower(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops())


def matrix_product_peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Measure the peak operations per second of a device: those of the fastest of several large matrix products.

    It takes about half a second; other work on the machine lowers the result.
    """
    on_cuda = torch.device(device).type == "cuda"
    size = 8192 if on_cuda else 1024
    generator = torch.Generator(device).manual_seed(0)  # separate: training must draw the same numbers
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
    """Count trained parameters and all parameters; a weight packed into 4 bits counts with its unpacked size."""
    sizes: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            packed = name == "weight" and hasattr(parameter, "quant_state") and hasattr(module, "in_features")
            sizes[parameter] = _size(module) if packed else parameter.numel()
    return sum(size for parameter, size in sizes.items() if parameter.requires_grad), sum(sizes.values())


def _size(layer: Any) -> int:
    return int(layer.in_features * layer.out_features)  # not numel(): quantized weights are packed
