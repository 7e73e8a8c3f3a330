"""`mmtune plan`: what a run will take, before anything is spent."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import lightning.pytorch as pl  # isort: skip
import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from mmtune.cli.shared.plan_tables import COMPARED, LANGUAGE, VISUAL, Plan, print_plan
from mmtune.cli.train import TrainingCLI, command_line
from mmtune.common.errors import UserError
from mmtune.common.files import find_resource, resource_folder, write_json
from mmtune.data.datamodule import InstructionData
from mmtune.models.cost.memory import DDP, FSDP, ONE_DEVICE, ZERO_2, ZERO_3, Sharding
from mmtune.models.cost.weightless import adapters_note
from mmtune.models.fitness.check import fitness_of
from mmtune.models.language import load_config, load_tokenizer
from mmtune.models.saving import model_folder
from mmtune.models.spec import VisionOptions
from mmtune.models.vocabulary import VocabularyError
from mmtune.training import plan
from mmtune.training.callbacks.ledger import device_peak, peak_host_memory
from mmtune.training.module import InstructionTuning

# hub ids whose architecture `mmtune/assets/architectures` holds; Vicuna 1.5 is tuned from Llama 2
ARCHITECTURES = {
    "meta-llama/Llama-2-7b-hf": "llama2_7b",
    "meta-llama/Llama-2-13b-hf": "llama2_13b",
    "lmsys/vicuna-7b-v1.5": "llama2_7b",
    "lmsys/vicuna-13b-v1.5": "llama2_13b",
}


class PlanTrainer(pl.Trainer):
    """Names the command and its arguments; it is never made."""

    def plan(self) -> None:
        """Nothing to train."""


class PlanCLI(TrainingCLI):
    """The flags of `mmtune fit`, and the numbers that stand for data which is not there."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one command."""
        return {"plan": set()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the flags that `fit` does not have."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--rows", type=int | None, default=None, help="Rows to plan for without reading data.")
        parser.add_argument(
            "--text_tokens", type=int | None, default=None, help="Text tokens of each, answers included."
        )
        parser.add_argument("--answer_tokens", type=int | None, default=None, help="Tokens of its answers.")
        parser.add_argument("--json", type=str | None, default=None, help="Also write the plan to this file.")

    def link_data(self, parser: LightningArgumentParser) -> None:
        """Do not: the data is told of the model only if it is read, and the model needs a tokenizer only then."""

    def instantiate_classes(self) -> None:
        """Make the module and the data, and no trainer: it would ask for the GPUs."""
        self.notes: list[str] = []
        config = self.config.plan
        self._take_parts_from_recipe(config.model)
        self.options, self.trainer_config = config.clone(), config.trainer.clone()
        config.trainer.strategy = "auto"  # may need a library that is not here
        for key in ("callbacks", "logger", "plugins", "profiler"):
            config.trainer[key] = None
        made = self.parser.instantiate_classes(self.config).plan
        self.model, self.datamodule = made.model, made.data

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: the plan is made from the parts."""

    def _take_parts_from_recipe(self, model: Any) -> None:
        """Where the model is to start from a run that is yet to be made, plan for what its recipe puts together."""
        name = Path(model.base or "").name
        shipped = {path.stem for path in resource_folder("configs").glob("*.yaml")}
        if not model.base or name not in shipped or model_folder(model.base) is not None:
            return
        recipe = self.parser.parse_args(["plan", "--config", str(find_resource("configs", name))]).plan
        if recipe.out != model.base:
            return
        self.notes.append(f"{model.base} is not there yet; planned for the model that the config {name} puts together.")
        model.base = None
        for part in ("language", "vision", "projector"):
            model[part] = model[part] if part == "language" and model.language else recipe.model[part]


def main(argv: list[str]) -> int:
    """Plan a run and print what it will take.

    Raises:
        UserError: a wrong flag, or neither data nor numbers to plan with.
    """
    cli, made = make_plan(argv)
    print_plan(made, Console(width=None if sys.stdout.isatty() else 110, highlight=False, markup=False, emoji=False))
    if cli.options.json:
        write_json(Path(cli.options.json), made.to_dict())
        print(f"Written to {cli.options.json}.", file=sys.stderr)
    return 0


def make_plan(argv: list[str], *, compared: bool = True) -> tuple[PlanCLI, Plan]:
    """Plan what `mmtune fit` would do with these arguments.

    Args:
        argv: of `mmtune plan`.
        compared: also plan for other methods, and for text against photos.

    Raises:
        UserError: as `main`.
    """
    cli = command_line(PlanCLI, ["plan", *argv], trainer_class=PlanTrainer)
    return cli, _plan(cli, compared=compared)


def _plan(cli: PlanCLI, *, compared: bool) -> Plan:
    module: InstructionTuning = cli.model
    data: InstructionData = cli.datamodule
    libraries = peak_host_memory()  # what the libraries take, before anything is computed
    known = _known_architecture(module.spec.language)
    fitness = fitness_of(load_config(known), module.spec.language, sees=module.spec.vision is not None)
    if not fitness.packed:
        cli.notes.append(fitness.told(module.spec.language))
    rows = _rows(cli)
    if known != module.spec.language:
        cli.notes.append(
            f"{module.spec.language} cannot be reached; its published shape, which mmtune ships, was used."
        )
        module.spec.language = known
    cli.notes += filter(None, [adapters_note(module.spec)])
    per_image = plan.tokens_per_image(module)
    schedule, dtype = _schedule(cli.trainer_config), _computed_in(cli)
    if schedule.sharding is FSDP:
        cli.notes.append("fsdp divides a frozen base in full precision: fit takes it for LoRA, not for QLoRA or full.")

    def packed(name: str, chosen: list[plan.Row], passes: float | None = None) -> plan.Workload:
        longest = max(row.text + row.images * per_image for row in chosen)
        if longest > data.max_length:
            cli.notes.append(f"{name}: rows of up to {longest} tokens; fit needs --data.max_length {longest} for them.")
        return plan.workload(
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
        # the same number of samples, also where the run ends after so many steps
        workloads.append(packed(name, plan.rows_of_kind(rows, visual=visual), asked.passes))
    if True not in kinds:
        cli.notes.append(f"{VISUAL}: assumed, the same rows with a photo of {per_image} tokens each.")
    if False not in kinds:
        cli.notes.append(f"{LANGUAGE}: assumed, the same rows without their photos.")
    if module.spec.vision is None:
        cli.notes.append(f"{VISUAL}: the model has no tower; counted with the recipe's, {VisionOptions().tower}.")
    cpu = plan.Card("this CPU", _physical_memory(), {dtype: device_peak(torch.device("cpu"), dtype)}, used=0.6)
    return Plan(
        method=plan.chosen_method(module),
        estimates=plan.estimates(module, workloads, schedule, every_method=compared),
        workloads=workloads,
        schedule=schedule,
        dtype=dtype,
        cards=[*plan.CARDS, cpu],
        libraries=libraries,
        notes=cli.notes,
    )


def _rows(cli: PlanCLI) -> list[plan.Row]:
    """From the numbers given, or from the data itself.

    Raises:
        UserError: numbers that do not go together, or no data and no numbers.
    """
    options, data, module = cli.options, cli.datamodule, cli.model
    numbers = {flag: options[flag] for flag in ("rows", "text_tokens", "answer_tokens")}
    if any(value is not None for value in numbers.values()):
        for flag, value in numbers.items():
            if value is None:
                raise UserError(
                    f"--{flag}: missing; a plan without data needs --rows, --text_tokens and --answer_tokens"
                )
            if value < 1:
                raise UserError(f"--{flag} {value}: must be at least 1")
        if options.answer_tokens >= options.text_tokens:
            raise UserError(
                f"--answer_tokens {options.answer_tokens}: are part of --text_tokens {options.text_tokens}; lower them"
            )
        cli.notes.append("Tokens are the numbers given, the same for every row.")
        texts = round(options.rows * _share_of_text(data, module))
        text = plan.Row(options.text_tokens, options.answer_tokens)
        visual = plan.Row(options.text_tokens, options.answer_tokens, images=1)
        return [text] * texts + [visual] * (options.rows - texts)
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
        plan.Row(len(e) - len(e.images) * per_image, int(e.supervised[1:].sum()), len(e.images))
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
    """Where the language model cannot be asked for its shape, the published one of the recipes' models."""
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


def _schedule(trainer: Any) -> plan.Schedule:
    devices = trainer.devices
    if isinstance(devices, str) and re.fullmatch(r"[\d,]+", devices):
        devices = [d for d in devices.split(",") if d] if "," in devices else int(devices)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    count *= trainer.num_nodes
    epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = trainer.max_steps if trainer.max_steps > 0 else None
    if epochs is None and steps is None:
        raise UserError("--trainer.max_epochs -1: a plan needs an end; give epochs or max_steps")
    return plan.Schedule(
        devices=count,
        accumulated=trainer.accumulate_grad_batches,
        epochs=epochs,
        steps=steps,
        sharding=_sharding(trainer.strategy, count),
        autocast=torch.bfloat16 if trainer.precision == "bf16-mixed" else None,
    )


def _sharding(strategy: Any, devices: int) -> Sharding:
    """What a strategy, by its name or class, divides among devices."""
    if devices == 1:
        return ONE_DEVICE
    options = {}
    if not isinstance(strategy, str):
        options = dict(strategy.get("init_args") or {})
        strategy = strategy.class_path
    name = strategy.rpartition(".")[2].lower()
    if "deepspeed" in name:
        stage = re.search(r"stage_(\d)", name)
        return ZERO_3 if int(stage[1] if stage else options.get("stage", 2)) == 3 else ZERO_2
    return FSDP if name.startswith(("fsdp", "modelparallel")) else DDP


def _computed_in(cli: PlanCLI) -> torch.dtype:
    """The type of the matrix products."""
    narrow = str(cli.trainer_config.precision).startswith("bf16") or cli.model.dtype_of_frozen is torch.bfloat16
    return torch.bfloat16 if narrow else torch.float32


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
