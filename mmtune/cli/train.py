"""`mmtune fit` and `mmtune validate`: Lightning's command line over mmtune's module and data."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, TypeVar

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import lightning.pytorch as pl  # isort: skip
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mmtune.cli.main import COMMANDS
from mmtune.cli.shared.config_checks import check_config
from mmtune.cli.shared.config_files import with_config_paths
from mmtune.cli.shared.contamination_callback import unseen_checks
from mmtune.cli.shared.flag_errors import unreadable
from mmtune.cli.shared.train_end import report, stopped_at_the_end, stopped_beside_steps
from mmtune.cli.shared.trainer_options import check_trainer_options
from mmtune.cli.shared.training_parser import TrainingParser
from mmtune.cli.shared.trusted_classes import class_names
from mmtune.cli.shared.trusted_code import FLAG, restrict_parsers, trusted_packages
from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path, check_links, hold_folder
from mmtune.common.signals import Terminated, stopped, terminating
from mmtune.data.datamodule import InstructionData
from mmtune.models.cost.weightless import adapters_note
from mmtune.models.decoding.batches import is_out_of_memory
from mmtune.models.language import check_context
from mmtune.training.callbacks.ledger import Ledger
from mmtune.training.callbacks.progress import TrainingProgress
from mmtune.training.callbacks.resume import RandomStates, SaveModel
from mmtune.training.callbacks.stopping import SoundLoss, StopOnSignal, Stopped
from mmtune.training.checkpoint_io import LAST, WholeCheckpoints, newest_whole, steps_taken
from mmtune.training.checkpoint_reading import guard_checkpoints, guard_deletion
from mmtune.training.dates import keep_date
from mmtune.training.loggers import check_loggers, choose_loggers, named_loggers
from mmtune.training.module import InstructionTuning
from mmtune.training.optimizers import check_optimizer
from mmtune.training.sharding import check_sharding


class SaveConfig(SaveConfigCallback):
    """Writes `RUN/config.yaml`, with which the run can be done again."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: a run that the checkpoint does not belong to is refused after this."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the resolved config before anything is computed, and tell it the loggers."""
        assert isinstance(pl_module, InstructionTuning)
        self.config.model.template_date = pl_module.spec.template_date
        if trainer.is_global_zero:
            target = Path(trainer.default_root_dir) / "config.yaml"
            with atomic_path(target) as temporary:
                self.parser.save(self.config, str(temporary), skip_none=False, overwrite=True, multifile=False)
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(target.read_text(encoding="utf-8")))


class TrainingCLI(LightningCLI):
    """Lightning's command line with a run directory: `--out` holds all that a run leaves behind."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and the arguments that the command line fills in itself."""
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
        """Tell the data of the model."""
        parser.link_arguments("model.inputs", "data.inputs", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Have the help begin with what is mmtune's: Lightning's own comes first, and is three quarters of it."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.description = COMMANDS[subcommand][1].capitalize() + "."
        parser.usage = f"mmtune {subcommand} [--config NAME] [--out DIR] [--model.…] [--data.…] [--trainer.…]"
        parser._action_groups.sort(key=lambda group: (group.title or "").startswith("Customize every aspect"))
        config = next(action for action in parser._actions if action.dest == "config")
        config.help = "A config that mmtune ships, by its name, or a YAML file; of several, the later win."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about arguments that do not come from sys.argv.

        Nothing is made yet of what the arguments name; what may not be made is refused here.

        Raises:
            UserError: they do not parse, or name code that is not to be run.
        """
        try:
            self.config = parser.parse_args(args)
        except (ValueError, OverflowError) as error:
            raise UserError(unreadable(args, error)) from None
        check_config(self.config[self.config.subcommand], args)

    def _set_seed(self) -> None:
        """Seed the generators.

        Raises:
            UserError: numpy takes no such seed.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from None

    def instantiate_classes(self) -> None:
        """Look for the loggers' packages before anything is made."""
        trainer = self._get(self.config, "trainer", default={})
        check_loggers(trainer.get("logger"))
        if self.subcommand == "fit":
            keep_date(self.config.fit.model, Path(self._get(self.config, "out")))
        super().instantiate_classes()

    def before_fit(self) -> None:
        """Look at the model's parts and at what trains them before the data is read."""
        if isinstance(strategy := self.trainer.strategy, ModelParallelStrategy):
            check_sharding(self.model.spec, self.model.stage, strategy)
        self.model.new_schedule = self._get(self.config_init, "new_schedule")
        self.model.check_parts()
        if (note := adapters_note(self.model.spec)) is not None:
            rank_zero_only(print)(f"mmtune: note: {note}", file=sys.stderr)
        if not self.model.fitness.packed:
            told = self.model.fitness.told(self.model.spec.language)
            rank_zero_only(print)(f"mmtune: note: {told}", file=sys.stderr)
        check_context(self.model.spec.language, self.datamodule.max_length)
        check_optimizer(self.model.optimizer_name, strategy.root_device)

    def before_validate(self) -> None:
        """Look at the model's parts before the data is read."""
        self.model.check_parts()

    def _parse_ckpt_path(self) -> None:
        """Nothing: checkpoints hold no flags, and one that cannot be read is named where it is read."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Resume an unfinished run; refuse to write over a finished one.

        The checkpoint is not noted in the run's config.yaml, which says how to do the run from the beginning. No code
        in a checkpoint is run: Lightning would run that of one at a web address unless told not to.

        Raises:
            UserError: the run is finished, another process writes there, or the code of a checkpoint is asked for.
        """
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if arguments.get("weights_only") is False:
            raise UserError("--weights_only false: would run code that a checkpoint may hold; leave it out")
        arguments["weights_only"] = True
        if subcommand != "fit":
            return arguments
        run = Path(self._get(self.config_init, "out"))
        check_links(run, "--out", ["checkpoints", "tensorboard"])
        rank_zero_only(hold_folder)(run, "--out")
        if (run / "model").exists():
            raise UserError(
                f"--out {run}: holds a finished run; choose another folder, or delete that one to train again"
            )
        if arguments.get("ckpt_path") is None and (found := newest_whole(run / "checkpoints")) is not None:
            which = "its last checkpoint" if found.name == LAST else f"{found.name}, for {LAST} is damaged or missing"
            steps = steps_taken(found)
            after = "" if steps is None else f" after step {steps}"
            rank_zero_only(print)(f"Resuming {run}{after} from {which}.", file=sys.stderr)
            arguments["ckpt_path"] = str(found)
        return arguments

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with mmtune's callbacks and logger beside the user's.

        Raises:
            UserError: Lightning refuses the options.
        """
        run = Path(self._get(self.config_init, "out"))
        options = self._get(self.config_init, "trainer", default={})
        check_trainer_options(options)
        callbacks = list(options.get("callbacks") or [])
        loggers = named_loggers(options.get("logger"))
        if self.subcommand == "fit":
            callbacks += [Ledger(run), RandomStates(), SoundLoss(), SaveModel(run), StopOnSignal(run)]
            callbacks += unseen_checks(run, *(self._get(self.config_init, k) for k in ("unseen", "unseen_data_root")))
            own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
            if options.get("enable_progress_bar") is not False and not own_bar:
                callbacks.append(TrainingProgress())
            every = self._get(self.config_init, "checkpoint_every")
            if every and options.get("enable_checkpointing") is not False:
                callbacks.append(
                    ModelCheckpoint(
                        dirpath=run / "checkpoints",
                        save_last=True,
                        save_top_k=0,
                        every_n_train_steps=every,
                        # a run that was moved would leave last.ckpt as it is and go on with last-v1.ckpt
                        enable_version_counter=False,
                    )
                )
            loggers = choose_loggers(run, options.get("logger"))
        try:
            trainer: pl.Trainer = super().instantiate_trainer(
                default_root_dir=str(run),
                callbacks=callbacks,
                logger=loggers or False,
                enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
                **kwargs,
            )
        except (ValueError, ImportError, RuntimeError, TypeError) as error:  # two callbacks of a kind, say
            raise UserError(f"--trainer: {error}") from error
        # only in the place of Lightning's own: strategies and plugins may bring another
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        guard_checkpoints(trainer.strategy)
        guard_deletion(trainer)
        return trainer


CLI = TypeVar("CLI", bound=TrainingCLI)


def main(argv: list[str]) -> int:
    """Run `fit` or `validate` with the given arguments.

    Returns:
        0, or 143 and 130 where SIGTERM or Ctrl-C ended it.

    Raises:
        UserError: anything the user can mend.
    """
    try:
        with terminating():
            cli = command_line(TrainingCLI, argv)
    except MisconfigurationException as error:  # options of Lightning's trainer that do not go together
        raise UserError(f"--trainer: {error}") from error
    except Stopped as stop:
        return stopped(stop.number, f" after step {stop.step}")
    except (Terminated, SIGTERMException):  # before the first step, or after the last
        return stopped_beside_steps(signal.SIGTERM)
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        return stopped_beside_steps(signal.SIGINT)  # Lightning makes exit(1) of it
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory; lower --data.pack_tokens (and --data.max_length, which it must hold), give "
            "--model.gradient_checkpointing true, or keep the frozen weights in 4 bits with --model.quantise nf4 and "
            "--model.lora"
        ) from error
    if cli.subcommand == "fit":
        report(cli)
        return stopped_at_the_end(cli)
    return 0


def command_line(kind: type[CLI], argv: list[str], **options: Any) -> CLI:
    """A command line over mmtune's module and data; making it runs the command."""
    _quieten()
    restrict_parsers([*class_names(), *trusted_packages(argv)])
    return kind(
        InstructionTuning,
        InstructionData,
        args=with_config_paths(argv),
        save_config_callback=SaveConfig,
        trainer_defaults={
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_model_summary": False,  # the progress bar says how much is trained
        },
        seed_everything_default=42,
        parser_kwargs={"prog": "mmtune"},
        parser_class=TrainingParser,
        auto_configure_optimizers=False,
        **options,
    )


def _quieten() -> None:
    """Keep advice that does not apply out of the user's sight."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Total length of `list` across ranks is zero.*",  # there is no validation set
        # nothing is wanted of the callback's state but what RandomStates restores
        ".*callbacks used to create the checkpoint need to be provided.*",
        "The dirpath has changed.*",
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*exists and is not empty.*",
        ".*The number of training batches.*",
    ):
        warnings.filterwarnings("ignore", message=message)
