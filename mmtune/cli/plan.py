"""`mmtune plan`: what a run will take, before anything is spent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import lightning.pytorch as pl  # isort: skip
from lightning.pytorch.cli import LightningArgumentParser

from mmtune.cli.train import TrainingCLI, command_line
from mmtune.common.files import find_resource, write_json
from mmtune.training.plan import Numbers, Plan, plan_run, planned_with_recipe
from mmtune.training.plan_tables import print_plan
from mmtune.training.recipes import recipe_of_base


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
        parser.add_argument(
            "--compared",
            type=bool,
            default=True,
            help="Also plan for other methods, and for text against photos; takes three times as long.",
        )
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
        if recipe_of_base(model.base) is None:
            return
        file = find_resource("configs", Path(model.base).name)
        recipe = self.parser.parse_args(["plan", "--config", str(file)]).plan
        self.notes.append(planned_with_recipe(model, recipe.model))


def main(argv: list[str]) -> int:
    """Plan a run and print what it will take.

    Raises:
        UserError: a wrong flag, or neither data nor numbers to plan with.
    """
    cli, made = make_plan(argv)
    print_plan(made)
    if cli.options.json:
        write_json(Path(cli.options.json), made.to_dict())
        print(f"Written to {cli.options.json}.", file=sys.stderr)
    return 0


def make_plan(argv: list[str]) -> tuple[PlanCLI, Plan]:
    """Plan what `mmtune fit` would do with these arguments of `mmtune plan`.

    Raises:
        UserError: as `main`.
    """
    cli = command_line(PlanCLI, ["plan", *argv], trainer_class=PlanTrainer)
    numbers = Numbers.of(cli.options.rows, cli.options.text_tokens, cli.options.answer_tokens)
    trainer = vars(cli.trainer_config)
    return cli, plan_run(cli.model, cli.datamodule, trainer, numbers, compared=cli.options.compared, notes=cli.notes)
