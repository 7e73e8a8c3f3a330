"""Trainer of a run: callbacks, checks before training, the checkpoint to resume from, and error messages."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mmtune.common.errors import UserError
from mmtune.common.files import check_links, hold_folder
from mmtune.data.datamodule import InstructionData
from mmtune.models.cost.weightless import adapters_note
from mmtune.models.decoding.batches import is_out_of_memory
from mmtune.models.language import check_context
from mmtune.training.callbacks.ledger import Ledger
from mmtune.training.callbacks.progress import TrainingProgress
from mmtune.training.callbacks.resume import RandomStates, SaveModel
from mmtune.training.callbacks.skipped_steps import SkippedSteps
from mmtune.training.callbacks.stopping import SoundLoss, StopOnSignal
from mmtune.training.checkpoint_io import LAST, WholeCheckpoints, newest_whole, steps_taken
from mmtune.training.checkpoint_reading import guard_checkpoints, guard_deletion
from mmtune.training.loggers import choose_loggers
from mmtune.training.module import InstructionTuning
from mmtune.training.optimizers import check_optimizer
from mmtune.training.sharding import check_sharding
from mmtune.training.trainer_options import check_trainer_options

DEFAULTS: dict[str, Any] = {
    "max_epochs": 1,
    "log_every_n_steps": 1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,  # the progress bar shows the number of trained parameters
}
SEED = 42


def run_options(
    run: Path, options: Mapping[str, Any], *, checkpoint_every: int, more: Sequence[pl.Callback] = ()
) -> dict[str, Any]:
    """Return callbacks and loggers of a training run, mmtune's and the user's, as options of Lightning's trainer.

    Args:
        run: the run directory.
        options: the user's options of Lightning's trainer.
        checkpoint_every: steps between checkpoints to resume from; 0 for none.
        more: further callbacks of mmtune.

    Raises:
        UserError: an option is out of range, or is not supported.
    """
    check_trainer_options(options)
    callbacks = list(options.get("callbacks") or [])
    callbacks += [SkippedSteps(), Ledger(run), RandomStates(), SoundLoss(), SaveModel(run), StopOnSignal(run), *more]
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if options.get("enable_progress_bar") is not False and not own_bar:
        callbacks.append(TrainingProgress())
    if checkpoint_every and options.get("enable_checkpointing") is not False:
        callbacks.append(
            ModelCheckpoint(
                dirpath=run / "checkpoints",
                save_last=True,
                save_top_k=0,
                every_n_train_steps=checkpoint_every,
                # a run that was moved would leave last.ckpt unchanged and continue with last-v1.ckpt
                enable_version_counter=False,
            )
        )
    return {"callbacks": callbacks, "logger": choose_loggers(run, options.get("logger"))}


def make_trainer(make: Callable[..., pl.Trainer], run: Path, callbacks: Sequence[Any], logger: Any) -> pl.Trainer:
    """Create a trainer that writes checkpoints atomically, and runs no code of the checkpoints that it reads.

    Args:
        make: Lightning's `Trainer`, or a replacement, with the user's options.
        run: the run directory.
        callbacks: all callbacks.
        logger: all loggers.

    Raises:
        UserError: Lightning refuses the options.
    """
    try:
        trainer = make(
            default_root_dir=str(run),
            callbacks=callbacks,
            logger=logger or False,
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        )
    except (ValueError, ImportError, RuntimeError, TypeError) as error:  # for example, two callbacks of one kind
        raise UserError(f"--trainer: {error}") from error
    # replace only Lightning's own: strategies and plugins may use another
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    guard_checkpoints(trainer.strategy)
    guard_deletion(trainer)
    return trainer


def check_run(module: InstructionTuning, data: InstructionData, trainer: pl.Trainer) -> None:
    """Check the model's parts, the strategy and the optimizer, before the data is read.

    Raises:
        UserError: a part is missing, or is incompatible with the others.
    """
    if isinstance(strategy := trainer.strategy, ModelParallelStrategy):
        check_sharding(module.spec, module.stage, strategy)
    module.check_parts()
    if (note := adapters_note(module.spec)) is not None:
        rank_zero_only(print)(f"mmtune: note: {note}", file=sys.stderr)
    if not module.fitness.packed:
        told = module.fitness.told(module.spec.language)
        rank_zero_only(print)(f"mmtune: note: {told}", file=sys.stderr)
    check_context(module.spec.language, data.max_length)
    check_optimizer(module.optimizer_name, strategy.root_device)


def claim_run(run: Path) -> None:
    """Lock a run directory for this process.

    Raises:
        UserError: the run is finished, links lead out of it, or another process writes there.
    """
    check_links(run, "--out", ["checkpoints", "tensorboard"])
    rank_zero_only(hold_folder)(run, "--out")
    if (run / "model").exists():
        raise UserError(f"--out {run}: holds a finished run; choose another folder, or delete that one to train again")


def checkpoint_of(run: Path) -> str | None:
    """Return the checkpoint that an unfinished run resumes from, and print it; None if there is none."""
    found = newest_whole(run / "checkpoints")
    if found is None:
        return None
    which = "its last checkpoint" if found.name == LAST else f"{found.name}, for {LAST} is damaged or missing"
    steps = steps_taken(found)
    after = "" if steps is None else f" after step {steps}"
    rank_zero_only(print)(f"Resuming {run}{after} from {which}.", file=sys.stderr)
    return str(found)


def train(
    trainer: pl.Trainer, module: InstructionTuning, data: InstructionData, run: Path, *, ckpt_path: str | None = None
) -> None:
    """Train in a run directory; resume from the given checkpoint, or else from that of an unfinished run.

    No code in a checkpoint is run: by default Lightning would run the code of a checkpoint at a web address.

    Raises:
        UserError: the run is finished, another process writes there, or a part is incompatible with the others.
    """
    check_run(module, data, trainer)
    claim_run(run)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path or checkpoint_of(run), weights_only=True)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Convert errors of Lightning's options, and out-of-memory errors, to user errors with advice.

    Raises:
        UserError: in place of these exceptions.
    """
    try:
        yield
    except MisconfigurationException as error:  # options of Lightning's trainer that do not go together
        raise UserError(f"--trainer: {error}") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory; lower --data.pack_tokens (and --data.max_length, which it must hold), give "
            "--model.gradient_checkpointing true, or keep the frozen weights in 4 bits with --model.quantise nf4 and "
            "--model.lora"
        ) from error


def quieten() -> None:
    """Suppress warnings and log messages of Lightning that do not apply to a run."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Total length of `list` across ranks is zero.*",  # there is no validation set
        # only the callback state that RandomStates restores is needed
        ".*callbacks used to create the checkpoint need to be provided.*",
        "The dirpath has changed.*",
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*exists and is not empty.*",
        ".*The number of training batches.*",
    ):
        warnings.filterwarnings("ignore", message=message)
