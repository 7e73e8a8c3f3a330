"""Memory of a training step, found without spending any: the step is run on tensors that have shapes and no values.

The model's own code runs under torch's FakeTensorMode, forward and backward, and every storage that comes and goes is
counted, so that adapters, DoRA, gradient checkpointing, autocast's copies and the chunks of the loss cost here what
they cost there. Of blocks that are alike, a few are run: in each phase of a pass, bytes grow by as many a block. What
stays from step to step (weights, gradients, AdamW's moments) is arithmetic, also where it is spread over devices. Not
counted: what a kernel takes for itself, an allocator's gaps, a GPU's own context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from mmtune.data.collate import PackedBatch, PackLayout
from mmtune.models.cost.live_bytes import LiveBytes, Peaks, mark_blocks, with_more_blocks
from mmtune.models.cost.weightless import FEW_BLOCKS, blocks_alike, copy_with_blocks, without_values
from mmtune.models.head import Head
from mmtune.models.language import decoder_blocks
from mmtune.models.vlm import TunableModel

# bytes a weight; NF4 has an 8-bit scale per 64 weights and a float32 per 256 scales (arXiv 2305.14314, section 3)
QUANTISED_BYTES = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "int8": 1.0}


@dataclass(frozen=True)
class Sharding:
    """How a strategy keeps what stays in memory between steps, in bytes a trained weight.

    Attributes:
        everywhere: that every device holds.
        divided: that the devices share.
        gathers: weights are divided, too, and a block's are put together when it is computed.
        blocks_alone: of the weights, only those of the language model's blocks are divided.
    """

    everywhere: int
    divided: int = 0
    gathers: bool = False
    blocks_alone: bool = False


# Four bytes each: the weight, AdamW's two moments, the gradient. Where gradients are not divided, the step meets them.
ONE_DEVICE = Sharding(12)
DDP = Sharding(12 + 4)  # gradients are exchanged through buckets, together as large as they
FSDP = Sharding(0, 12 + 4, gathers=True, blocks_alone=True)  # mmtune.training.sharding
# DeepSpeed keeps 16-bit weights and gradients beside the float32 ones (arXiv 1910.02054, section 3.1)
ZERO_2 = Sharding(2, 12 + 2)
ZERO_3 = Sharding(0, 2 + 12 + 2, gathers=True)


@dataclass(frozen=True)
class StepMemory:
    """Bytes on each device when most are in use, in one training step.

    Attributes:
        frozen: weights that are not trained.
        trained: weights that are, AdamW's moments of them, and what else a strategy keeps of them.
        working: activations, temporaries, and the gradients that are not divided among devices.
    """

    frozen: int
    trained: int
    working: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.working


@dataclass(frozen=True)
class PackShape:
    """What a pack's memory and operations depend on.

    Attributes:
        documents: tokens of each document, its photos' included.
        supervised: tokens learnt from.
        images: how many there are.
        tokens_per_image: of the documents' tokens.
    """

    documents: tuple[int, ...]
    supervised: int
    images: int = 0
    tokens_per_image: int = 0

    @property
    def tokens(self) -> int:
        """Of all documents."""
        return sum(self.documents)

    @property
    def image_tokens(self) -> int:
        """Tokens that are photo features."""
        return self.images * self.tokens_per_image


Loss = Callable[[torch.Tensor, torch.Tensor, Head], torch.Tensor]


def step_memory(
    model: TunableModel,
    working: int,
    *,
    sharding: Sharding = ONE_DEVICE,
    devices: int = 1,
    autocast: torch.dtype | None = None,
    moments: float = 8,
    on_gpu: bool = True,
) -> StepMemory:
    """Memory of a training step on each device.

    Args:
        model: on the meta device, its stage set.
        working: bytes that come and go, from `working_bytes`; with `keep_gradients` where the sharding divides nothing.
        sharding: what is divided among the devices.
        devices: how many share it.
        autocast: the type that products are computed in, where it is not that of the weights.
        moments: bytes that the optimizer's take, a trained weight; AdamW's own are 8.
        on_gpu: AdamW updates all weights at once there, and one after the other on a CPU.
    """
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    blocks = decoder_blocks(model.base_language)
    frozen, in_blocks = (sum(_bytes(p) for p in m.parameters() if not p.requires_grad) for m in (model, blocks))
    if model.spec.quantise is not None:
        quantised = _frozen_linear_weights(model)
        saved = sum(_bytes(w) - round(w.numel() * QUANTISED_BYTES[model.spec.quantise]) for w in quantised)
        frozen, in_blocks = frozen - saved, in_blocks - saved
        working += max(map(_bytes, quantised))  # one layer's weights, unpacked while it is computed
    if sharding.gathers:
        divided = in_blocks if sharding.blocks_alone else frozen
        frozen += divided // devices - divided
        # the block that is computed and the one that is fetched meanwhile
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
        working += 2 * largest * (autocast or model.base_language.dtype).itemsize
    # the update has the gradients, and the roots of the second moments
    if sharding.divided:
        update = 4 * sum(trained) // devices
    else:
        at_once = on_gpu and moments == 8
        update = 4 * (sum(trained) + (sum(trained) if at_once else max(trained, default=0)))
    spared = round((8 - moments) * sum(trained)) // (devices if sharding.divided else 1)
    return StepMemory(
        frozen=frozen,
        trained=sharding.everywhere * sum(trained) + sharding.divided * sum(trained) // devices - spared,
        working=max(working, update),
    )


@dataclass(frozen=True)
class TrainingPass:
    """A forward and backward pass.

    Attributes:
        pack: what it computes.
        loss: from hidden states [supervised, hidden], targets [supervised] and the output layer to a scalar.
        autocast: the type that products are computed in, where it is not that of the weights.
        accumulates: an optimizer step is made of several packs.
        tower_runs: photos are encoded in the step; otherwise their features are read.
        keep_gradients: otherwise they leave as soon as they are there, as where they are divided among devices, and the
            weights are in the type that products are computed in.
    """

    pack: PackShape
    loss: Loss
    autocast: torch.dtype | None = None
    accumulates: bool = False
    tower_runs: bool = True
    keep_gradients: bool = True


def working_bytes(model: TunableModel, work: TrainingPass) -> int:
    """Bytes beyond the weights' when most are in use, in a forward and backward pass.

    Args:
        model: on the meta device, its stage set; it stays as it is.
        work: the pass.
    """
    count = len(decoder_blocks(model.base_language))
    if not blocks_alike(model.base_language, settings=True):
        return max(peaks_with_blocks(model, count, work).values())
    fewer, more = (peaks_with_blocks(model, blocks, work) for blocks in (FEW_BLOCKS - 1, FEW_BLOCKS))
    return max(with_more_blocks(fewer, more, count - FEW_BLOCKS).values())


def peaks_with_blocks(model: TunableModel, blocks: int, work: TrainingPass) -> Peaks:
    """The most bytes beyond the weights' in each phase of a pass through the first so many blocks."""
    model = copy_with_blocks(model, model.base_language, blocks)
    base, autocast = model.base_language, work.autocast
    # what is known of the whole model is asked for before it has fewer blocks
    with without_values(base), FakeTensorMode():
        base.config.get_text_config(decoder=True).num_hidden_layers = blocks
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        base.tie_weights()
        trained = [p for p in model.parameters() if p.requires_grad]
        if not work.keep_gradients:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(autocast or parameter.dtype)
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_forget)
        with LiveBytes([*model.parameters(), *model.buffers()]) as live:
            batch = _pack_without_values(model, work)
            mark_blocks(decoder_blocks(base), live)
            if work.keep_gradients:  # those of the step before are there until the backward pass begins
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                # a copy, as picking the supervised positions makes one
                states = model(batch)[: work.pack.supervised].clone()
                total = work.loss(states, batch.targets[: work.pack.supervised], model.output_layer)
            if work.keep_gradients and not work.accumulates:
                model.zero_grad()
            live.mark("backward")
            if total.requires_grad:
                total.backward()
    return live.peaks


def _pack_without_values(model: TunableModel, work: TrainingPass) -> PackedBatch:
    pack = work.pack
    pixels = features = None
    if pack.images:
        assert model.tower is not None
        shape = model.tower.shape
        if work.tower_runs:
            pixels = torch.empty(pack.images, 3, shape.size, shape.size)
        else:
            features = torch.empty(pack.images, shape.num_tokens, shape.width)
    ids, targets, positions, documents = (torch.empty(pack.tokens, dtype=torch.int64) for _ in range(4))
    ends = torch.empty(len(pack.documents) + 1, dtype=torch.int32)
    supervised, shown = (torch.empty(count, dtype=torch.int64) for count in (pack.supervised, pack.image_tokens))
    layout = PackLayout(pack.documents, ends, supervised, shown)
    return PackedBatch(ids, targets, positions, documents, pixels, features, (), (), layout=layout)


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _frozen_linear_weights(model: TunableModel) -> list[torch.Tensor]:
    """Weights of the blocks' linear layers: what quantisation packs."""
    layers = [m for m in model.base_language.base_model.modules() if isinstance(m, nn.Linear | Conv1D)]
    return [layer.weight for layer in layers if not layer.weight.requires_grad]
