"""Estimates of the cost of a run, by method and workload: parameters, tokens, operations, memory and time."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from mmtune.common.errors import UserError
from mmtune.data.packing import plan_packs
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.cost.flops import FlopsCounter, StepFlops
from mmtune.models.cost.memory import (
    DDP,
    FSDP,
    ONE_DEVICE,
    ZERO_2,
    ZERO_3,
    PackShape,
    Sharding,
    StepMemory,
    TrainingPass,
    step_memory,
    working_bytes,
)
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions
from mmtune.models.vision import tower_shape
from mmtune.training.module import InstructionTuning
from mmtune.training.objectives.objective import Objective

# bytes a weight: two moments in float32, or in 8 bits with a float32 per 256 of them (arXiv 2110.02861, section 2)
MOMENTS: dict[str, float] = {"adamw": 8, **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit"), 2 * (1 + 4 / 256))}


@dataclass(frozen=True)
class Card:
    """Device to plan for.

    Attributes:
        name: product name.
        memory: size of the memory, in bytes.
        peak: operations per second of dense matrix products, by the type they are computed in.
        used: the share of the peak that training is assumed to reach.
    """

    name: str
    memory: int
    peak: dict[torch.dtype, float]
    used: float = 0.4


def _card(name: str, gib: int, bfloat16: float, float32: float) -> Card:
    return Card(name, gib * 2**30, {torch.bfloat16: bfloat16, torch.float32: float32})


# NVIDIA's data sheets: dense, sums in float32, no TF32
CARDS = (
    _card("A100 80GB", 80, 312e12, 19.5e12),
    _card("H100 80GB", 80, 989e12, 67e12),
    _card("RTX 4090", 24, 165e12, 82.6e12),
)


@dataclass(frozen=True)
class Row:
    """Row of training data: number of text tokens, supervised tokens, and images."""

    text: int
    supervised: int
    images: int = 0


@dataclass(frozen=True)
class Schedule:
    """Training schedule: devices, gradient accumulation, epochs and steps.

    Attributes:
        devices: number of devices of all nodes together.
        accumulated: packs that each device computes for a step.
        epochs: passes over the data; None if only steps are limited.
        steps: maximum number of optimizer steps; None for no limit.
        sharding: how the weights are divided among the devices.
        autocast: the type of matrix products, if it is not that of the weights.
    """

    devices: int = 1
    accumulated: int = 1
    epochs: int | None = 1
    steps: int | None = None
    sharding: Sharding = ONE_DEVICE
    autocast: torch.dtype | None = None

    def steps_of(self, packs: int) -> int:
        """Return the number of optimizer steps of an epoch with this many packs."""
        return math.ceil(math.ceil(packs / self.devices) / self.accumulated)

    def passes(self, packs: int) -> float:
        """Return how many times the run iterates over this many packs, possibly a fraction."""
        limits = [self.epochs] if self.epochs is not None else []
        return min([*limits, self.steps / self.steps_of(packs)] if self.steps is not None else limits)


def schedule_of(trainer: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a Lightning trainer with these options, which must be complete.

    Raises:
        UserError: the run would never end.
    """
    devices = trainer["devices"]
    if isinstance(devices, str) and re.fullmatch(r"[\d,]+", devices):
        devices = [d for d in devices.split(",") if d] if "," in devices else int(devices)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    count *= trainer["num_nodes"]
    epochs = None if trainer["max_epochs"] in (None, -1) else trainer["max_epochs"]
    steps = trainer["max_steps"] if trainer["max_steps"] > 0 else None
    if epochs is None and steps is None:
        raise UserError("--trainer.max_epochs -1: a plan needs an end; give epochs or max_steps")
    return Schedule(
        devices=count,
        accumulated=trainer["accumulate_grad_batches"],
        epochs=epochs,
        steps=steps,
        sharding=_sharding(trainer["strategy"], count),
        autocast=torch.bfloat16 if trainer["precision"] == "bf16-mixed" else None,
    )


def _sharding(strategy: Any, devices: int) -> Sharding:
    """Return how a strategy (its name, an object, or a config of its class) divides weights among devices."""
    if devices == 1:
        return ONE_DEVICE
    options: dict[str, Any] = {}
    if isinstance(strategy, Strategy):
        options = getattr(strategy, "config", None) or {}
        options = dict(options.get("zero_optimization") or {})
        strategy = type(strategy).__name__
    elif not isinstance(strategy, str):
        options = dict(strategy.get("init_args") or {})
        strategy = str(strategy["class_path"])
    name = strategy.rpartition(".")[2].lower()
    if "deepspeed" in name:
        stage = re.search(r"stage_(\d)", name)
        return ZERO_3 if int(stage[1] if stage else options.get("stage", 2)) == 3 else ZERO_2
    return FSDP if name.startswith(("fsdp", "modelparallel")) else DDP


@dataclass(frozen=True)
class Workload:
    """Training rows, divided into packs.

    Attributes:
        name: name of the kind of rows.
        rows: number of rows in an epoch.
        packs: shapes of the packs of an epoch.
        steps: number of optimizer steps of the run.
        passes: how many times the run iterates over the rows.
    """

    name: str
    rows: int
    packs: tuple[PackShape, ...]
    steps: int
    passes: float

    def tokens(self) -> dict[str, int]:
        """Return the number of text, image and supervised tokens of the whole run."""
        image = sum(pack.image_tokens for pack in self.packs)
        every = {
            "text": sum(pack.tokens for pack in self.packs) - image,
            "image": image,
            "supervised": sum(pack.supervised for pack in self.packs),
        }
        return {kind: round(count * self.passes) for kind, count in every.items()}


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one training method on one workload.

    Attributes:
        method: LoRA, QLoRA, full, or align.
        workload: name of the workload.
        trainable: number of trainable parameters.
        total: number of all parameters.
        flops: operations of the whole run.
        gpu: memory on each GPU.
        cpu: memory of a single process on a CPU.
    """

    method: str
    workload: str
    trainable: int
    total: int
    flops: StepFlops
    gpu: StepMemory
    cpu: StepMemory

    @property
    def operations(self) -> int:
        """Operations of the run in all parts of the model."""
        return self.flops.language + self.flops.projector + self.flops.tower

    def seconds(self, card: Card, dtype: torch.dtype, devices: int) -> float:
        """Return the training time on `devices` cards, at the assumed share of their peak."""
        return self.operations / (card.peak[dtype] * card.used * devices)


def workload(
    name: str,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    tokens_per_image: int,
    budget: int,
    pack_rows: int | None,
    seed: int,
    passes: float | None = None,
) -> Workload:
    """Pack rows as training does. If rows exceed the budget, the length of the longest row replaces it.

    `passes` are those of another workload to compare with; by default, those of the schedule.
    """
    lengths = [row.text + row.images * tokens_per_image for row in rows]
    packs = plan_packs(lengths, budget=max(budget, *lengths), max_rows=pack_rows, seed=seed)
    shapes = tuple(
        PackShape(
            documents=tuple(lengths[i] for i in pack),
            supervised=sum(rows[i].supervised for i in pack),
            images=sum(rows[i].images for i in pack),
            tokens_per_image=tokens_per_image,
        )
        for pack in packs
    )
    passes = schedule.passes(len(shapes)) if passes is None else passes
    return Workload(name, len(rows), shapes, math.ceil(passes * schedule.steps_of(len(shapes))), passes)


def rows_of_kind(rows: Sequence[Row], *, visual: bool) -> list[Row]:
    """Return the same number of rows, all with images or all without.

    Rows of that kind are repeated if there are too few. If there is none, the other rows are used, with one image each
    or without images.
    """
    found = [row for row in rows if bool(row.images) == visual]
    found = found or [dataclasses.replace(row, images=int(visual)) for row in rows]
    return [found[i % len(found)] for i in range(len(rows))]


def methods(module: InstructionTuning) -> dict[str, ModelSpec]:
    """Return the model spec of each training method: align alone, or LoRA, QLoRA and full.

    If the module has no LoRA options, the adapters are those of the recipe (default `LoraOptions`).
    """
    spec = module.spec
    if module.stage == "align":
        return {"align": spec}
    lora = spec.lora or LoraOptions()
    return {
        "LoRA": dataclasses.replace(spec, lora=lora, quantise=None),
        "QLoRA": dataclasses.replace(spec, lora=lora, quantise="nf4"),
        "full": dataclasses.replace(spec, lora=None, quantise=None),
    }


def chosen_method(module: InstructionTuning) -> str:
    """Return the training method that the module is configured with."""
    if module.stage == "align":
        return "align"
    return "full" if module.spec.lora is None else "QLoRA" if module.spec.quantise == "nf4" else "LoRA"


def estimates(
    module: InstructionTuning, workloads: Sequence[Workload], schedule: Schedule, *, every_method: bool = True
) -> list[Estimate]:
    """Estimate every method on every workload, or only the module's own method."""
    working: dict[tuple[bool, str, bool], int] = {}  # adapters compute the same on quantised weights

    def measured(model: VisionLanguageModel, work: Workload, *, keep_gradients: bool) -> int:
        key = (model.spec.lora is not None, work.name, keep_gradients)
        if key not in working:
            step = TrainingPass(
                max(work.packs, key=lambda pack: pack.tokens),
                module.objective.loss_at,
                autocast=schedule.autocast,
                accumulates=schedule.accumulated > 1,
                tower_runs=not module.stored_features_gib,
                keep_gradients=keep_gradients,
            )
            working[key] = working_bytes(model, step)
        return working[key]

    moments = MOMENTS[module.optimizer_name]

    def estimate(method: str, model: VisionLanguageModel, work: Workload) -> Estimate:
        parameters = list(model.parameters())
        sharding = schedule.sharding
        here = measured(model, work, keep_gradients=True)
        there = measured(model, work, keep_gradients=False) if sharding.divided else here
        return Estimate(
            method,
            work.name,
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            total=sum(p.numel() for p in parameters),
            flops=operations(model, work, module.objective, tower_once=bool(module.stored_features_gib)),
            gpu=step_memory(
                model,
                there,
                sharding=sharding,
                devices=schedule.devices,
                autocast=schedule.autocast,
                moments=moments,
            ),
            cpu=step_memory(model, here, moments=moments, on_gpu=False),
        )

    found = []
    for method, spec in methods(module).items():
        if not every_method and method != chosen_method(module):
            continue
        build = functools.cache(functools.partial(_without_weights, module, spec))
        for work in workloads:
            sees = spec.vision is not None or any(pack.images for pack in work.packs)
            found.append(estimate(method, build(sees=sees), work))
    return found


def operations(model: VisionLanguageModel, work: Workload, objective: Objective, *, tower_once: bool) -> StepFlops:
    """Count the operations of a run, as the ledger does.

    With `tower_once`, the features of each image are computed once and stored for later epochs.
    """
    counter = FlopsCounter(model)
    steps = [
        counter.step(
            documents=pack.documents,
            supervised=pack.supervised,
            image_tokens=pack.image_tokens,
            images=pack.images,
            head_twice=objective.computes_logits_twice(pack.supervised),
        )
        for pack in work.packs
    ]
    language, projector, tower = (sum(getattr(s, part) for s in steps) for part in ("language", "projector", "tower"))
    passes = work.passes
    return StepFlops(
        round(language * passes), round(projector * passes), round(tower * (min(1, passes) if tower_once else passes))
    )


def tokens_per_image(module: InstructionTuning) -> int:
    """Return the tokens per image of the module's tower, or of the recipe's tower if the module has none."""
    return tower_shape(module.spec.vision or VisionOptions()).num_tokens


def _without_weights(module: InstructionTuning, spec: ModelSpec, *, sees: bool) -> VisionLanguageModel:
    """Build the model on the meta device, ready to train; if `sees` and it has no tower, with the recipe's tower."""
    vision = spec.vision or (VisionOptions() if sees else None)
    spec = dataclasses.replace(spec, vision=vision, template="plain")  # no conversation is rendered with it
    model = VisionLanguageModel.assemble(spec, dtype=module.dtype_of_frozen, meta=True, tokenizer=object())
    module.prepare(model)
    return model.train()
