"""Plan of a run: estimated memory, time and operations, without training."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mmtune.common.errors import UserError
from mmtune.data.datamodule import InstructionData
from mmtune.models.cost.memory import FSDP
from mmtune.models.cost.weightless import adapters_note
from mmtune.models.fitness.check import fitness_of
from mmtune.models.language import load_config, load_tokenizer
from mmtune.models.spec import VisionOptions
from mmtune.models.vocabulary import VocabularyError
from mmtune.training.arguments import check_names, data_options, make_datamodule, make_module, model_options
from mmtune.training.callbacks.ledger import device_peak, peak_host_memory
from mmtune.training.estimates import (
    CARDS,
    Card,
    Estimate,
    Row,
    Schedule,
    Workload,
    chosen_method,
    estimates,
    rows_of_kind,
    schedule_of,
    tokens_per_image,
    workload,
)
from mmtune.training.module import InstructionTuning
from mmtune.training.objectives.objective import Objective
from mmtune.training.recipes import recipe_of_base
from mmtune.training.trainer import DEFAULTS

# hub ids whose architecture `mmtune/assets/architectures` holds; Vicuna 1.5 is tuned from Llama 2
ARCHITECTURES = {
    "meta-llama/Llama-2-7b-hf": "llama2_7b",
    "meta-llama/Llama-2-13b-hf": "llama2_13b",
    "lmsys/vicuna-7b-v1.5": "llama2_7b",
    "lmsys/vicuna-13b-v1.5": "llama2_13b",
}


LANGUAGE, VISUAL = "100 % language", "100 % visual"
COMPARED = {LANGUAGE: False, VISUAL: True}


@dataclass(frozen=True)
class Plan:
    """Result of `mmtune plan`.

    Attributes:
        method: the training method of the config.
        estimates: estimates of the methods on the workloads.
        workloads: the rows as configured if they are of both kinds or nothing is compared; for a comparison, the same
            number of rows without images, and with images.
        schedule: the training schedule.
        dtype: type of the matrix products.
        cards: devices to plan for; the last is this machine's CPU.
        libraries: bytes that a process uses before it computes anything.
        notes: assumptions of the plan.
    """

    method: str
    estimates: list[Estimate]
    workloads: list[Workload]
    schedule: Schedule
    dtype: torch.dtype
    cards: list[Card]
    libraries: int
    notes: list[str]

    def memory(self, card: Card, estimate: Estimate) -> int:
        """Return the peak memory in bytes on one card, or of the whole process on the CPU."""
        return self.libraries + estimate.cpu.peak if self.is_cpu(card) else estimate.gpu.peak

    def seconds(self, card: Card, estimate: Estimate) -> float:
        """Return the training time in seconds on the requested number of devices, or on the one CPU."""
        return estimate.seconds(card, self.dtype, 1 if self.is_cpu(card) else self.schedule.devices)

    def is_cpu(self, card: Card) -> bool:
        """Return whether a card is this machine's CPU."""
        return card is self.cards[-1]

    def savings(self) -> dict[str, float]:
        """Return the ratio of operations, 100 % visual to 100 % language, by method; empty if nothing is compared."""
        total = {(e.method, e.workload): e.operations for e in self.estimates}
        methods = [method for method, rows in total if rows == LANGUAGE]
        return {
            method: total[method, VISUAL] / total[method, LANGUAGE] if total[method, LANGUAGE] else float("inf")
            for method in methods
        }

    def to_dict(self) -> dict[str, Any]:
        """Convert the plan to a dict of JSON values."""
        return {
            "method": self.method,
            "devices": self.schedule.devices,
            "work": [
                {
                    "rows": w.name,
                    "count": w.rows,
                    "packs": len(w.packs),
                    "steps": w.steps,
                    "tokens": w.tokens(),
                }
                for w in self.workloads
            ],
            "estimates": [
                {
                    "method": e.method,
                    "rows": e.workload,
                    "params": {"trainable": e.trainable, "total": e.total},
                    "flops": dataclasses.asdict(e.flops),
                    "memory_bytes": {
                        "gpu": {**dataclasses.asdict(e.gpu), "peak": e.gpu.peak},
                        "cpu": {
                            **dataclasses.asdict(e.cpu),
                            "libraries": self.libraries,
                            "peak": self.libraries + e.cpu.peak,
                        },
                    },
                    "cards": {
                        card.name: {
                            "seconds": self.seconds(card, e),
                            "memory_bytes": self.memory(card, e),
                            "fits": self.memory(card, e) <= card.memory,
                        }
                        for card in self.cards
                    },
                }
                for e in self.estimates
            ],
            "visual_over_language": self.savings(),
            "assumed": {
                "share_of_peak": {card.name: card.used for card in self.cards},
                "peak_flops": {card.name: card.peak[self.dtype] for card in self.cards},
                "notes": self.notes,
            },
        }


@dataclass(frozen=True)
class Numbers:
    """Number of rows and tokens to plan with, in place of data.

    Attributes:
        rows: number of rows.
        text_tokens: text tokens of each row, answers included.
        answer_tokens: tokens of the answers of each row.
    """

    rows: int
    text_tokens: int
    answer_tokens: int

    @classmethod
    def of(cls, rows: int | None, text_tokens: int | None, answer_tokens: int | None) -> Numbers | None:
        """Combine the three numbers; return None if none is given.

        Raises:
            UserError: a number is missing or below 1, or the answers have at least as many tokens as the text.
        """
        if rows is text_tokens is answer_tokens is None:
            return None
        for flag, value in (("rows", rows), ("text_tokens", text_tokens), ("answer_tokens", answer_tokens)):
            if value is None:
                raise UserError(
                    f"--{flag}: missing; a plan without data needs --rows, --text_tokens and --answer_tokens"
                )
            if value < 1:
                raise UserError(f"--{flag} {value}: must be at least 1")
        assert rows is not None
        assert text_tokens is not None
        assert answer_tokens is not None
        if answer_tokens >= text_tokens:
            raise UserError(f"--answer_tokens {answer_tokens}: are part of --text_tokens {text_tokens}; lower them")
        return cls(rows, text_tokens, answer_tokens)


def plan(
    model: str | Path | Mapping[str, Any],
    data: Any = None,
    out: str | Path = "",
    *,
    rows: int | None = None,
    text_tokens: int | None = None,
    answer_tokens: int | None = None,
    compared: bool = True,
    objective: Objective | None = None,
    **fit: Any,
) -> Plan:
    """Plan what `mmtune.fit` would do with the same arguments, as `mmtune plan` does: no weights, no GPU.

    Args:
        model: as for `fit`.
        data: as for `fit`; may be left out, or name files that are not there, where numbers are given.
        out: not used, like `checkpoint_every`, `new_schedule` and `seed`: accepted so that arguments of `fit` can be
            passed unchanged.
        rows: number of rows to plan for without reading data.
        text_tokens: text tokens of each row, answers included.
        answer_tokens: tokens of the answers of each row.
        compared: also plan for other methods, and compare rows without images to rows with images.
        objective: the loss; supervised fine-tuning where it is left out.
        **fit: options of Lightning's trainer.

    Returns:
        The plan; `mmtune.training.plan_tables.print_plan` prints it.

    Raises:
        UserError: a wrong option, or neither data nor numbers to plan with.
    """
    trainer = {name: value for name, value in fit.items() if name not in ("checkpoint_every", "new_schedule", "seed")}
    check_names(trainer, pl.Trainer, "trainer")
    options, notes = model_options(model), []
    if (recipe := recipe_of_base(options.get("base"))) is not None:
        notes.append(planned_with_recipe(options, recipe["model"]))
    module = make_module(options)
    module.objective = objective or module.objective
    known = {name: one.default for name, one in inspect.signature(pl.Trainer).parameters.items()}
    return plan_run(
        module,
        make_datamodule(data_options({"train": {}} if data is None else data)),
        {**known, **DEFAULTS, **trainer},
        Numbers.of(rows, text_tokens, answer_tokens),
        compared=compared,
        notes=notes,
    )


def planned_with_recipe(model: MutableMapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Replace the base of a model by the parts that its recipe names; return a note about it."""
    base, model["base"] = model["base"], None
    for part in ("language", "vision", "projector"):
        if part != "language" or not model.get("language"):
            model[part] = recipe.get(part)
    return f"{base} is not there yet; planned for the model that the config {Path(base).name} puts together."


def plan_run(
    module: InstructionTuning,
    data: InstructionData,
    trainer: Mapping[str, Any],
    numbers: Numbers | None,
    *,
    compared: bool = True,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan a run of a module on data, or on numbers of rows and tokens.

    Args:
        module: module to train; the name of its language model is replaced if that cannot be reached.
        data: data module with the rows.
        trainer: all options of Lightning's trainer; a strategy by its name, as an object, or as in a config.
        numbers: numbers in place of missing data, or None.
        compared: also plan for other methods, and compare rows without images to rows with images.
        notes: assumptions that were made before.

    Raises:
        UserError: neither data nor numbers to plan with.
    """
    notes = list(notes)
    libraries = peak_host_memory()  # memory of the libraries, before anything is computed
    known = _known_architecture(module.spec.language)
    fitness = fitness_of(load_config(known), module.spec.language, sees=module.spec.vision is not None)
    if not fitness.packed:
        notes.append(fitness.told(module.spec.language))
    rows = _rows(data, module, numbers, notes)
    if known != module.spec.language:
        notes.append(f"{module.spec.language} cannot be reached; its published shape, which mmtune ships, was used.")
        module.spec.language = known
    notes += filter(None, [adapters_note(module.spec)])
    per_image = tokens_per_image(module)
    schedule, dtype = schedule_of(trainer), _computed_in(module, trainer)
    if schedule.sharding is FSDP:
        notes.append("fsdp divides a frozen base in full precision: fit takes it for LoRA, not for QLoRA or full.")

    def packed(name: str, chosen: list[Row], passes: float | None = None) -> Workload:
        longest = max(row.text + row.images * per_image for row in chosen)
        if longest > data.max_length:
            notes.append(f"{name}: rows of up to {longest} tokens; fit needs --data.max_length {longest} for them.")
        return workload(
            name,
            chosen,
            schedule,
            tokens_per_image=per_image,
            budget=data.budget,
            pack_rows=data.pack_rows,
            seed=data.mixture.seed,
            passes=passes,
        )

    kinds = {bool(row.images) for row in rows}
    asked = packed("as configured", rows)
    workloads = [asked] if len(kinds) == 2 or not compared else []
    for name, visual in COMPARED.items() if compared else ():
        # the same number of samples, also if the run ends after a number of steps
        workloads.append(packed(name, rows_of_kind(rows, visual=visual), asked.passes))
    if compared and True not in kinds:
        notes.append(f"{VISUAL}: assumed, the same rows with a photo of {per_image} tokens each.")
    if compared and False not in kinds:
        notes.append(f"{LANGUAGE}: assumed, the same rows without their photos.")
    if compared and module.spec.vision is None:
        notes.append(f"{VISUAL}: the model has no tower; counted with the recipe's, {VisionOptions().tower}.")
    cpu = Card("this CPU", _physical_memory(), {dtype: device_peak(torch.device("cpu"), dtype)}, used=0.6)
    return Plan(
        method=chosen_method(module),
        estimates=estimates(module, workloads, schedule, every_method=compared),
        workloads=workloads,
        schedule=schedule,
        dtype=dtype,
        cards=[*CARDS, cpu],
        libraries=libraries,
        notes=notes,
    )


def _rows(data: InstructionData, module: InstructionTuning, numbers: Numbers | None, notes: list[str]) -> list[Row]:
    """Return the rows to plan with, from the numbers or from the data itself.

    Raises:
        UserError: the data cannot be read and there are no numbers, or the share of text rows is not known.
    """
    if numbers is not None:
        notes.append("Tokens are the numbers given, the same for every row.")
        texts = round(numbers.rows * _share_of_text(data, module))
        text = Row(numbers.text_tokens, numbers.answer_tokens)
        visual = Row(numbers.text_tokens, numbers.answer_tokens, images=1)
        return [text] * texts + [visual] * (numbers.rows - texts)
    data.check_images = False  # a plan needs no pixels
    try:
        data.inputs = module.inputs
        data.setup("fit")
    except UserError as error:
        raise UserError(
            f"{error}; to plan without data or tokenizer, give --rows, --text_tokens and --answer_tokens (of each row)"
        ) from None
    per_image = data.inputs.tokens_per_image
    return [
        Row(len(e) - len(e.images) * per_image, int(e.supervised[1:].sum()), len(e.images))
        for e in data.train_dataloader().dataset.examples
    ]


def _share_of_text(data: InstructionData, module: InstructionTuning) -> float:
    mixture = data.mixture
    if module.spec.vision is None:
        return 1.0
    if mixture.text_fraction is not None:
        return mixture.text_fraction
    if mixture.text and mixture.visual:
        raise UserError(
            "--data.train.text_fraction: give the share of rows without a photo, 0 to 1, to plan without data"
        )
    return 0.0 if mixture.visual else 1.0


def _known_architecture(name: str) -> str:
    """Return the language model's name, or the shipped architecture of a recipe's model whose config is unavailable."""
    try:
        load_config(name)
    except UserError:
        if name not in ARCHITECTURES:
            raise
        return f"package:mmtune/assets/architectures/{ARCHITECTURES[name]}"
    try:
        load_tokenizer(name)
    except VocabularyError:
        raise
    except UserError:
        return name  # a plan of numbers needs no tokenizer
    return name


def _computed_in(module: InstructionTuning, trainer: Mapping[str, Any]) -> torch.dtype:
    """Return the type of the matrix products."""
    narrow = str(trainer["precision"]).startswith("bf16") or module.dtype_of_frozen is torch.bfloat16
    return torch.bfloat16 if narrow else torch.float32


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
