"""`mmtune fit` and `mmtune validate`: Lightning's command line with mmtune's module and data."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any, TypeVar

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import lightning.pytorch as pl  # isort: skip
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmtune.cli.main import COMMANDS
from mmtune.cli.shared.config_checks import check_config
from mmtune.cli.shared.config_files import with_config_paths
from mmtune.cli.shared.contamination import suite_named
from mmtune.cli.shared.flag_errors import unreadable
from mmtune.cli.shared.train_end import finish, stopped_beside_steps
from mmtune.cli.shared.training_parser import TrainingParser
from mmtune.cli.shared.trusted_classes import class_names
from mmtune.cli.shared.trusted_code import FLAG, restrict_parsers, trusted_packages
from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path
from mmtune.common.signals import Terminated, stopped, terminating
from mmtune.data.datamodule import InstructionData
from mmtune.evaluation.contamination.callback import ContaminationCheck
from mmtune.training.callbacks.stopping import Stopped
from mmtune.training.dates import keep_date
from mmtune.training.loggers import check_loggers, named_loggers
from mmtune.training.module import InstructionTuning
from mmtune.training.trainer import (
    DEFAULTS,
    SEED,
    explained,
    make_trainer,
    quieten,
    run_options,
    train,
)
from mmtune.training.trainer_options import check_trainer_options


class SaveConfig(SaveConfigCallback):
    """Callback that writes `RUN/config.yaml`, with which the run can be repeated."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do nothing: a checkpoint of another run is refused after this hook, and before `on_fit_start`."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the resolved config before training, and send it to the loggers; only the first process does."""
        assert isinstance(pl_module, InstructionTuning)
        self.config.model.template_date = pl_module.spec.template_date
        if trainer.is_global_zero:
            target = Path(trainer.default_root_dir) / "config.yaml"
            with atomic_path(target) as temporary:
                self.parser.save(self.config, str(temporary), skip_none=False, overwrite=True, multifile=False)
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(target.read_text(encoding="utf-8")))


class TrainingCLI(LightningCLI):
    """Lightning's command line with a run directory, `--out`, for all files of a run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the arguments of the trainer's method that become no flags."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add mmtune's own flags."""
        parser.add_argument("--out", type=str, default="runs/fit", help="The run directory.")
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=100,
            help="Steps between checkpoints to resume from; 0 for none.",
        )
        parser.add_argument(
            "--new_schedule",
            type=bool,
            default=False,
            help="Resume with another --trainer.max_epochs or max_steps than the run began with, though the learning "
            "rate jumps by that.",
        )
        parser.add_argument(
            "--unseen",
            type=str | None,
            default=None,
            help="Compare the training rows with this suite's, and write what they have in common to RUN/unseen.json.",
        )
        parser.add_argument(
            "--unseen_data_root",
            type=str | None,
            default=None,
            help="Read that suite's rows below this folder, as `mmtune eval --data-root` does.",
        )
        parser.add_argument(
            FLAG,
            type=str | None,
            default=None,
            help="Packages, with commas between them, whose code a class_path may name besides the trainer's own; it "
            "runs with your rights. The flag counts on the command line alone.",
        )
        self.link_data(parser)

    def link_data(self, parser: LightningArgumentParser) -> None:
        """Link the inputs of the model to the data module."""
        parser.link_arguments("model.inputs", "data.inputs", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Create the parser of a subcommand, with a help that lists mmtune's options before Lightning's.

        Lightning's own options are three quarters of the help, and come first by default.
        """
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.description = COMMANDS[subcommand][1].capitalize() + "."
        parser.usage = f"mmtune {subcommand} [--config NAME] [--out DIR] [--model.…] [--data.…] [--trainer.…]"
        parser._action_groups.sort(key=lambda group: (group.title or "").startswith("Customize every aspect"))
        config = next(action for action in parser._actions if action.dest == "config")
        config.help = "A config that mmtune ships, by its name, or a YAML file; of several, the later win."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about arguments that do not come from sys.argv.

        No class that the arguments name is instantiated yet; `check_config` refuses those that are not trusted.

        Raises:
            UserError: the arguments cannot be parsed, or `check_config` refuses them.
        """
        try:
            self.config = parser.parse_args(args)
        except (ValueError, OverflowError) as error:
            raise UserError(unreadable(args, error)) from None
        check_config(self.config[self.config.subcommand], args)

    def _set_seed(self) -> None:
        """Seed the random number generators.

        Raises:
            UserError: numpy does not accept the seed.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from None

    def instantiate_classes(self) -> None:
        """Check that the loggers' packages are installed, set the template date of a run to resume, and instantiate.

        Raises:
            UserError: a package is missing, or another date is given than the run to resume began with.
        """
        trainer = self._get(self.config, "trainer", default={})
        check_loggers(trainer.get("logger"))
        if self.subcommand == "fit":
            keep_date(self.config.fit.model, Path(self._get(self.config, "out")))
        super().instantiate_classes()

    def fit(
        self, model: InstructionTuning, datamodule: InstructionData, ckpt_path: str | None = None, **options: Any
    ) -> None:
        """Train with `mmtune.training.trainer.train`, in place of Lightning's `fit`; `options` are not used."""
        model.new_schedule = self._get(self.config_init, "new_schedule")
        train(self.trainer, model, datamodule, Path(self._get(self.config_init, "out")), ckpt_path=ckpt_path)

    def before_validate(self) -> None:
        """Check that every part of the model exists, before the data is read."""
        self.model.check_parts()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: checkpoints contain no flags, and an unreadable one is reported where it is loaded."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Return the arguments of the trainer's method; a checkpoint is loaded without running code in it.

        Raises:
            UserError: `--weights_only false` is given, which would run code in a checkpoint.
        """
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if arguments.get("weights_only") is False:
            raise UserError("--weights_only false: would run code that a checkpoint may hold; leave it out")
        return arguments | {"weights_only": True}

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Create the trainer with the user's callbacks and loggers, and for `fit` also mmtune's.

        Raises:
            UserError: an option is out of range or not supported, or the suite or folder of `--unseen` does not exist.
        """
        run = Path(self._get(self.config_init, "out"))
        options = self._get(self.config_init, "trainer", default={})
        if self.subcommand == "fit":
            every = self._get(self.config_init, "checkpoint_every")
            chosen = run_options(run, options, checkpoint_every=every, more=self._contamination_checks())
        else:
            check_trainer_options(options)
            chosen = {"callbacks": list(options.get("callbacks") or []), "logger": named_loggers(options.get("logger"))}
        make = functools.partial(super().instantiate_trainer, **kwargs)
        return make_trainer(make, run, chosen["callbacks"], chosen["logger"])

    def _contamination_checks(self) -> list[pl.Callback]:
        """Return the callback of the flags `--unseen` and `--unseen_data_root`; an empty list without `--unseen`.

        Raises:
            UserError: there is no such suite or folder, or only the folder is given.
        """
        suite, root = (self._get(self.config_init, name) for name in ("unseen", "unseen_data_root"))
        if suite is None and root is not None:
            raise UserError(f"--unseen_data_root {root}: says where the rows of --unseen SUITE are; give that too")
        if root is not None and not Path(root).expanduser().is_dir():
            raise UserError(f"--unseen_data_root {root}: no such folder")
        return [] if suite is None else [ContaminationCheck(suite_named(suite), root)]


CLI = TypeVar("CLI", bound=TrainingCLI)


def main(argv: list[str]) -> int:
    """Run `fit` or `validate` with the given arguments.

    Returns:
        Exit status: 0, 143 after SIGTERM, 130 after Ctrl-C.

    Raises:
        UserError: any error that the user can fix.
    """
    try:
        with explained(), terminating():
            cli = command_line(TrainingCLI, argv)
    except Stopped as stop:
        return stopped(stop.number, f" after step {stop.step}")
    except (Terminated, SIGTERMException):  # before the first step, or after the last
        return stopped_beside_steps(signal.SIGTERM)
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        return stopped_beside_steps(signal.SIGINT)  # Lightning converts KeyboardInterrupt to exit(1)
    if cli.subcommand == "fit":
        return finish(cli)
    return 0


def command_line(kind: type[CLI], argv: list[str], **options: Any) -> CLI:
    """Create a command line for mmtune's module and data, which parses the arguments and runs the command.

    Args:
        kind: class of the command line.
        argv: the arguments, the subcommand first.
        **options: further arguments of LightningCLI.
    """
    quieten()
    restrict_parsers([*class_names(), *trusted_packages(argv)])
    return kind(
        InstructionTuning,
        InstructionData,
        args=with_config_paths(argv),
        save_config_callback=SaveConfig,
        trainer_defaults=DEFAULTS,
        seed_everything_default=SEED,
        parser_kwargs={"prog": "mmtune"},
        parser_class=TrainingParser,
        auto_configure_optimizers=False,
        **options,
    )
