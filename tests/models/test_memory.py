"""The bytes that a step on tensors without values finds are those that a real step has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.cost.live_bytes import LiveBytes
from mmtune.models.cost.memory import (
    DDP,
    FSDP,
    ONE_DEVICE,
    ZERO_2,
    PackShape,
    TrainingPass,
    peaks_with_blocks,
    step_memory,
    working_bytes,
)
from mmtune.models.cost.weightless import blocks_alike
from mmtune.models.spec import LoraOptions, ModelSpec
from mmtune.training.objectives.token_loss import chunked_loss, supervised_loss

Build = Callable[..., VisionLanguageModel]
Make = Callable[..., Example]
Pack = Callable[[VisionLanguageModel, list[Example]], PackedBatch]
SOME = LoraOptions(r=4, dropout=0.1)


def shape_of(batch: PackedBatch, photos: int) -> PackShape:
    documents = tuple(batch.document_lengths)
    return PackShape(documents, batch.supervised_tokens, photos, batch.image_tokens // max(1, photos))


@pytest.mark.cpu_only("attention is computed by other kernels on a GPU, and takes other memory")
@pytest.mark.parametrize(
    ("vision", "lora", "extra"),
    [
        pytest.param(False, SOME, "", id="adapters"),
        pytest.param(False, None, "", id="in full"),
        pytest.param(False, SOME, "checkpointing", id="gradient checkpointing"),
        pytest.param(False, LoraOptions(r=4, dropout=0.1, dora=True), "", id="DoRA"),
        pytest.param(False, SOME, "autocast", id="autocast"),
        pytest.param(True, SOME, "", id="photos"),
    ],
)
def test_the_bytes_are_those_of_a_real_step(
    build: Build, example: Make, packed: Pack, vision: bool, lora: Any, extra: str
) -> None:
    model = build(vision=vision, lora=lora)
    model.set_stage("tune")
    if extra == "checkpointing":
        model.base_language.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    autocast = torch.bfloat16 if extra == "autocast" else None
    batch = packed(
        model, [example(model, "some question " * 9, "an answer " * 20, (i,) if vision else ()) for i in range(3)]
    )
    shape = shape_of(batch, 3 if vision else 0)
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        batch = copy.deepcopy(batch)  # it is in memory as long as the step is
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = supervised_loss(model(batch), batch.targets, model.output_layer)
        model.zero_grad()
        loss.backward()
    model.zero_grad()
    work = TrainingPass(shape, chunked_loss, autocast=autocast)
    assert working_bytes(model, work) == pytest.approx(live.peak, rel=0.03)


def empty(reference: Any, **options: Any) -> VisionLanguageModel:
    model = VisionLanguageModel.assemble(ModelSpec(str(reference), template="chatml", **options), meta=True)
    model.set_stage("tune")
    return model


def test_what_stays_is_weights_moments_and_what_a_strategy_keeps(llama: Any) -> None:
    model = empty(llama)
    trained = sum(p.numel() for p in model.parameters())
    assert step_memory(model, 7, sharding=ONE_DEVICE, on_gpu=False).trained == 12 * trained
    assert step_memory(model, 7, sharding=DDP, devices=8).trained == 16 * trained
    assert step_memory(model, 7, sharding=ZERO_2, devices=8).trained == 2 * trained + 14 * trained // 8
    assert step_memory(model, 7, sharding=FSDP, devices=8).trained == 2 * trained
    assert step_memory(model, 7, sharding=ONE_DEVICE, moments=2).trained == 6 * trained
    assert step_memory(model, 7, sharding=FSDP, devices=8, moments=2).trained == 10 * trained // 8
    # the update has all gradients and, on a GPU, as much again
    assert step_memory(model, 7, sharding=ONE_DEVICE).working == 8 * trained
    assert step_memory(model, 10**9, sharding=ONE_DEVICE).working == 10**9


def test_adapters_keep_the_moments_of_adapters_alone(llama: Any) -> None:
    model = empty(llama, lora=SOME)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = step_memory(model, 0)
    assert memory.trained == 12 * adapters
    assert memory.frozen == 4 * sum(p.numel() for p in empty(llama).parameters())
    halves = step_memory(model, 0, sharding=FSDP, devices=2)
    blocks = [p for p in model.base_language.base_model.layers.parameters() if not p.requires_grad]
    assert halves.frozen == memory.frozen - 4 * sum(p.numel() for p in blocks) // 2


def test_four_bits_are_a_little_more_than_four(llama: Any) -> None:
    plain, packed = empty(llama, lora=SOME), empty(llama, lora=SOME, quantise="nf4")
    linear = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)  # weights of two blocks
    saved = step_memory(plain, 0).frozen - step_memory(packed, 0).frozen
    assert saved == pytest.approx(linear * (32 - 4.127) / 8, rel=1e-3)
    assert step_memory(packed, 10**6).working == 10**6 + 64 * 96 * 4  # one layer's weights unpacked


def test_counting_storages_knows_views_and_ends() -> None:
    known = torch.zeros(10)
    with LiveBytes([known]) as live:
        known.view(2, 5)
        first = torch.zeros(1000)
        first[3:].neg_()
        del first
        second = torch.zeros(500)
    assert isinstance(live, TorchDispatchMode)
    assert live.peak == 4000
    assert second.numel() == 500


def test_a_known_storage_that_ends_makes_room_for_a_counted_one() -> None:
    known = [torch.zeros(1000) for _ in range(20)]
    with LiveBytes(known) as live:
        known.clear()
        new = [torch.zeros(1000) for _ in range(20)]  # where the others were
    assert live.peak == 4000 * len(new)


@pytest.mark.parametrize("method", ["adapters, gradient checkpointing", "in full"])
@pytest.mark.parametrize("family", ["llama", "falcon", "gemma2", "mixtral"])
def test_few_blocks_tell_the_bytes_of_all(family: str, method: str, tmp_path: Any) -> None:
    """Gemma 2's blocks differ in their windows, and all are run."""
    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    AutoConfig.for_model(family, **sizes, num_hidden_layers=7).save_pretrained(tmp_path)
    lora = SOME if "adapters" in method else None
    spec = ModelSpec(str(tmp_path), template="chatml", lora=lora)
    model = VisionLanguageModel.assemble(spec, meta=True, tokenizer=object())
    model.set_stage("tune")
    if lora is not None:
        model.base_language.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert blocks_alike(model.base_language, settings=True) == (family != "gemma2")
    for keep in (True, False):
        work = TrainingPass(PackShape((40, 70), 60), chunked_loss, keep_gradients=keep)
        assert working_bytes(model, work) == max(peaks_with_blocks(model, 7, work).values())
