"""Estimates of what a run takes, by method and workload: parameters, tokens, operations, memory and time."""

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
    """A device to plan for.

    Attributes:
        name: as it is sold.
        memory: bytes.
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
    """A row of training data: tokens of its text, those that are learnt, and its photos."""

    text: int
    supervised: int
    images: int = 0


@dataclass(frozen=True)
class Schedule:
    """How the trainer goes through the rows.

    Attributes:
        devices: of all nodes together.
        accumulated: packs that each device computes for a step.
        epochs: passes over the data; None where only steps are counted.
        steps: the most there may be; None for no limit.
        sharding: how the weights lie on the devices.
        autocast: the type of products, where it is not that of the weights.
    """

    devices: int = 1
    accumulated: int = 1
    epochs: int | None = 1
    steps: int | None = None
    sharding: Sharding = ONE_DEVICE
    autocast: torch.dtype | None = None

    def steps_of(self, packs: int) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(math.ceil(packs / self.devices) / self.accumulated)

    def passes(self, packs: int) -> float:
        """How many times the run goes through so many packs."""
        limits = [self.epochs] if self.epochs is not None else []
        return min([*limits, self.steps / self.steps_of(packs)] if self.steps is not None else limits)


def schedule_of(trainer: Mapping[str, Any]) -> Schedule:
    """The schedule of a trainer with these options of Lightning's, all of them.

    Raises:
        UserError: it would never end.
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
    """What a strategy (its name, an object, or a config of its class) divides among devices."""
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
    """Rows in packs.

    Attributes:
        name: what they are.
        rows: in an epoch, as all that follows but `steps`.
        packs: their shapes.
        steps: of the run.
        passes: times that the run goes through the rows.
    """

    name: str
    rows: int
    packs: tuple[PackShape, ...]
    steps: int
    passes: float

    def tokens(self) -> dict[str, int]:
        """Of the whole run, by kind."""
        image = sum(pack.image_tokens for pack in self.packs)
        every = {
            "text": sum(pack.tokens for pack in self.packs) - image,
            "image": image,
            "supervised": sum(pack.supervised for pack in self.packs),
        }
        return {kind: round(count * self.passes) for kind, count in every.items()}


@dataclass(frozen=True)
class Estimate:
    """A way to train, on one workload.

    Attributes:
        method: LoRA, QLoRA, full, or align.
        workload: the rows' name.
        trainable: parameters.
        total: parameters.
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
        """Of all parts of the model."""
        return self.flops.language + self.flops.projector + self.flops.tower

    def seconds(self, card: Card, dtype: torch.dtype, devices: int) -> float:
        """On so many of a card, at the share of its peak that is assumed."""
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
    """Pack rows as training does. A row beyond the budget gets a pack of its own.

    `passes` are those of another workload that is to be compared; by default, the schedule's.
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
    """As many rows, all of one kind: those there are, again if need be; or else the others with or without a photo."""
    found = [row for row in rows if bool(row.images) == visual]
    found = found or [dataclasses.replace(row, images=int(visual)) for row in rows]
    return [found[i % len(found)] for i in range(len(rows))]


def methods(module: InstructionTuning) -> dict[str, ModelSpec]:
    """The ways to train a module's model; those that it does not take itself with the recipe's adapters."""
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
    """The one that the module takes itself."""
    if module.stage == "align":
        return "align"
    return "full" if module.spec.lora is None else "QLoRA" if module.spec.quantise == "nf4" else "LoRA"


def estimates(
    module: InstructionTuning, workloads: Sequence[Workload], schedule: Schedule, *, every_method: bool = True
) -> list[Estimate]:
    """Every method on every workload, or the module's own method alone."""
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
    """Of a run, counted as the ledger counts them. With `tower_once`, a photo's features are kept for later epochs."""
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
    """Of the module's tower, or of the recipe's where it has none."""
    return tower_shape(module.spec.vision or VisionOptions()).num_tokens


def _without_weights(module: InstructionTuning, spec: ModelSpec, *, sees: bool) -> VisionLanguageModel:
    """The model on the meta device, as it is trained; with the recipe's tower if it is to see and has none."""
    vision = spec.vision or (VisionOptions() if sees else None)
    spec = dataclasses.replace(spec, vision=vision, template="plain")  # nothing is written down with it
    model = VisionLanguageModel.assemble(spec, dtype=module.dtype_of_frozen, meta=True, tokenizer=object())
    module.prepare(model)
    return model.train()
