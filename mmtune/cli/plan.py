"""`mmtune plan`: estimate of a run's tokens, operations, memory and time, before it starts."""

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
    """Trainer class that defines the subcommand `plan` and its flags; it is never instantiated."""

    def plan(self) -> None:
        """Do nothing: a plan trains nothing."""


class PlanCLI(TrainingCLI):
    """Command line of `mmtune plan`: the flags of `fit`, and numbers of rows and tokens in place of missing data.

    Attributes:
        notes: assumptions of the plan.
        options: the parsed config, before it is instantiated.
        trainer_config: the parsed options of the trainer.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the only subcommand, `plan`."""
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
        """Link nothing: the data needs the model's inputs, and so the tokenizer, only if it is read."""

    def instantiate_classes(self) -> None:
        """Instantiate the module and the data, but no trainer, which would require the GPUs."""
        self.notes: list[str] = []
        config = self.config.plan
        self._take_parts_from_recipe(config.model)
        self.options, self.trainer_config = config.clone(), config.trainer.clone()
        config.trainer.strategy = "auto"  # a strategy may need a library that is not installed
        for key in ("callbacks", "logger", "plugins", "profiler"):
            config.trainer[key] = None
        made = self.parser.instantiate_classes(self.config).plan
        self.model, self.datamodule = made.model, made.data

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: `make_plan` uses the module and the data."""

    def _take_parts_from_recipe(self, model: Any) -> None:
        """Replace a base run that does not exist yet by the parts that its shipped config names, and add a note."""
        if recipe_of_base(model.base) is None:
            return
        file = find_resource("configs", Path(model.base).name)
        recipe = self.parser.parse_args(["plan", "--config", str(file)]).plan
        self.notes.append(planned_with_recipe(model, recipe.model))


def main(argv: list[str]) -> int:
    """Plan a run and print the estimates; return the exit status 0.

    Raises:
        UserError: a flag is invalid, or there are neither data nor numbers to plan with.
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
