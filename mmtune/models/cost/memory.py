"""Memory of a training step, estimated by running the step on tensors that have shapes and no values.

The model's own code runs under torch's FakeTensorMode, forward and backward, and every storage that is allocated and
freed is counted, including those of adapters, DoRA, gradient checkpointing, autocast's copies and the chunks of the
loss. Of identical blocks, only a few are run, since the bytes in each phase of a pass grow linearly with their number.
What stays from step to step (weights, gradients, AdamW's moments) is computed from sizes, also where it is divided
among devices. Not counted: buffers of the model, memory that kernels allocate internally, fragmentation of the
allocator, and the context of a GPU.
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

# bytes per weight; NF4 has an 8-bit scale per 64 weights and a float32 per 256 scales (arXiv 2305.14314, section 3)
QUANTISED_BYTES = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "int8": 1.0}


@dataclass(frozen=True)
class Sharding:
    """Division of the persistent training state among devices, in bytes per trained weight.

    Attributes:
        everywhere: bytes that every device holds.
        divided: bytes that are divided among the devices.
        gathers: whether weights are divided, too, and those of a block are gathered when it is computed.
        blocks_alone: whether, of the frozen weights, only those of the language model's blocks are divided.
    """

    everywhere: int
    divided: int = 0
    gathers: bool = False
    blocks_alone: bool = False


# Four bytes each: weight, AdamW's two moments, gradient. Undivided gradients are counted in the working memory.
ONE_DEVICE = Sharding(12)
DDP = Sharding(12 + 4)  # 4 for the buckets that exchange gradients, as large as all gradients
FSDP = Sharding(0, 12 + 4, gathers=True, blocks_alone=True)  # mmtune.training.sharding
# DeepSpeed keeps 16-bit weights and gradients beside the float32 ones (arXiv 1910.02054, section 3.1)
ZERO_2 = Sharding(2, 12 + 2)
ZERO_3 = Sharding(0, 2 + 12 + 2, gathers=True)


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of one training step on each device, in bytes.

    Attributes:
        frozen: weights that are not trained.
        trained: trained weights, their optimizer moments, and what else a strategy keeps per trained weight.
        working: activations, temporaries, and the gradients that are not divided among devices.
    """

    frozen: int
    trained: int
    working: int

    @property
    def peak(self) -> int:
        """Sum of all parts."""
        return self.frozen + self.trained + self.working


@dataclass(frozen=True)
class PackShape:
    """Shape of a pack, which determines its memory and its operations.

    Attributes:
        documents: number of tokens of each document, with those of its images.
        supervised: number of supervised tokens.
        images: number of images.
        tokens_per_image: number of the documents' tokens that each image takes.
    """

    documents: tuple[int, ...]
    supervised: int
    images: int = 0
    tokens_per_image: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        return sum(self.documents)

    @property
    def image_tokens(self) -> int:
        """Number of tokens that are image features."""
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
    """Compute the memory of a training step on each device.

    Args:
        model: model on the meta device, with its stage set.
        working: temporary bytes from `working_bytes`, with `keep_gradients` if the sharding divides nothing.
        sharding: division of the training state among the devices.
        devices: number of devices.
        autocast: data type of matrix products where it is not that of the weights.
        moments: bytes of the optimizer's moments per trained weight; 8 for AdamW.
        on_gpu: whether the step runs on a GPU, where AdamW updates all weights at once; on a CPU, one after the other.
    """
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    blocks = decoder_blocks(model.base_language)
    frozen, in_blocks = (sum(_bytes(p) for p in m.parameters() if not p.requires_grad) for m in (model, blocks))
    if model.spec.quantise is not None:
        quantised = _frozen_linear_weights(model)
        saved = sum(_bytes(w) - round(w.numel() * QUANTISED_BYTES[model.spec.quantise]) for w in quantised)
        frozen, in_blocks = frozen - saved, in_blocks - saved
        working += max(map(_bytes, quantised))  # the weights of one layer, unpacked while it is computed
    if sharding.gathers:
        divided = in_blocks if sharding.blocks_alone else frozen
        frozen += divided // devices - divided
        # the block that is computed, and the next one, which is gathered meanwhile
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
        working += 2 * largest * (autocast or model.base_language.dtype).itemsize
    # the update holds the gradients and the square roots of the second moments
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
    """Settings of a forward and backward pass.

    Attributes:
        pack: shape of the pack.
        loss: function from hidden states [supervised, hidden], targets [supervised] and the output layer to a scalar.
        autocast: data type of matrix products where it is not that of the weights.
        accumulates: whether an optimizer step accumulates the gradients of several packs.
        tower_runs: whether the vision tower encodes images in the step; otherwise precomputed features are read.
        keep_gradients: whether gradients stay in memory. Otherwise each is freed as soon as it is computed, as where
            gradients are divided among devices, and the weights have the data type of the matrix products.
    """

    pack: PackShape
    loss: Loss
    autocast: torch.dtype | None = None
    accumulates: bool = False
    tower_runs: bool = True
    keep_gradients: bool = True


def working_bytes(model: TunableModel, work: TrainingPass) -> int:
    """Return the peak bytes of a forward and backward pass, without the weights.

    Args:
        model: model on the meta device, with its stage set; it is not changed.
        work: settings of the pass.
    """
    count = len(decoder_blocks(model.base_language))
    if not blocks_alike(model.base_language, settings=True):
        return max(peaks_with_blocks(model, count, work).values())
    fewer, more = (peaks_with_blocks(model, blocks, work) for blocks in (FEW_BLOCKS - 1, FEW_BLOCKS))
    return max(with_more_blocks(fewer, more, count - FEW_BLOCKS).values())


def peaks_with_blocks(model: TunableModel, blocks: int, work: TrainingPass) -> Peaks:
    """Return the peak bytes, without the weights, in each phase of a pass through the first `blocks` blocks."""
    model = copy_with_blocks(model, model.base_language, blocks)
    base, autocast = model.base_language, work.autocast
    # the fitness is that of the whole model: look it up before num_hidden_layers changes
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
            if work.keep_gradients:  # gradients of the previous step stay until the backward pass begins
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                # a copy, as selecting the supervised positions makes one
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
    """Return the frozen weights of the base model's linear layers, which quantization packs."""
    layers = [m for m in model.base_language.base_model.modules() if isinstance(m, nn.Linear | Conv1D)]
    return [layer.weight for layer in layers if not layer.weight.requires_grad]
