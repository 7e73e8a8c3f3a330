"""Training from Python: the same as `mmtune fit`, without a command line."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmtune.common.files import atomic_path, read_json
from mmtune.common.signals import Terminated, terminating
from mmtune.training.arguments import check_names, data_options, make_datamodule, make_module, model_options
from mmtune.training.callbacks.stopping import Stopped, received_signal
from mmtune.training.dates import keep_date
from mmtune.training.module import InstructionTuning
from mmtune.training.objectives.objective import Objective
from mmtune.training.trainer import (
    DEFAULTS,
    SEED,
    explained,
    make_trainer,
    quieten,
    run_options,
    train,
)

_OURS = ("callbacks", "logger")


@dataclass(frozen=True)
class Run:
    """Finished training run.

    Attributes:
        path: the run directory.
    """

    path: Path

    @property
    def model(self) -> Path:
        """Folder of the tuned model."""
        return self.path / "model"

    @property
    def ledger(self) -> dict[str, Any]:
        """Cost of the run: the content of ledger.json; see docs/training.md."""
        found: dict[str, Any] = read_json(self.path / "ledger.json")
        return found


def fit(
    model: str | Path | Mapping[str, Any],
    data: Any,
    out: str | Path = "runs/fit",
    *,
    objective: Objective | None = None,
    checkpoint_every: int = 100,
    new_schedule: bool = False,
    seed: int = SEED,
    **trainer: Any,
) -> Run:
    """Train a model as `mmtune fit` does: packs, exact resuming, ledger, guards.

    An unfinished run in `out` is resumed. In place of the flag `--unseen`, give the callback
    `mmtune.evaluation.contamination.callback.ContaminationCheck`.

    Args:
        model: a run, a saved model or a language model to start from; or options of
            `mmtune.training.module.InstructionTuning`, as a config has them under `model`.
        data: rows (a list of dicts, a `datasets.Dataset`, a pandas frame), the path of a file or several; or options of
            `mmtune.data.datamodule.InstructionData`, as a config has them under `data`, whose `train` is a mapping.
            Rows may also stand where a config names a file.
        out: the run directory.
        objective: the loss; supervised fine-tuning where it is left out. The ledger and config.yaml hold its name; with
            that, the config is refused by the command line, which would train with another loss.
        checkpoint_every: steps between checkpoints to resume from; 0 for none.
        new_schedule: resume with another number of steps than the run began with, though the learning rate jumps.
        seed: of all random numbers but those that model and data have seeds for.
        **trainer: options of Lightning's trainer: `max_steps`, `max_epochs`, `accumulate_grad_batches`, `precision`, …

    Returns:
        The finished run.

    Raises:
        UserError: with the message of the command line; names of flags stand for the options of the same name.
        KeyboardInterrupt: Ctrl-C was pressed. A step that had begun is finished and saved; the same call resumes it.
        Terminated: SIGTERM was received; the same applies. It is a SystemExit with the status 143.
    """
    run = Path(out)
    check_names(trainer, pl.Trainer, "trainer")
    options = {**DEFAULTS, **trainer}
    model_given, data_given = model_options(model), data_options(data)
    settings = {
        "out": str(run),
        "checkpoint_every": checkpoint_every,
        "seed_everything": seed,
        "model": model_given,
        "data": data_given,
        "trainer": {name: value for name, value in options.items() if name not in _OURS},
    }
    if objective is not None:
        settings["objective"] = objective.name
    quieten()
    with explained(), _stopping():
        pl.seed_everything(seed, workers=True, verbose=False)
        dated = SimpleNamespace(template_date=model_given.get("template_date"))
        keep_date(dated, run)
        module = make_module({**model_given, "template_date": dated.template_date})
        module.new_schedule = new_schedule
        module.objective = objective or module.objective
        datamodule = make_datamodule(data_given, module.inputs)
        record = [_RecordSettings(run, settings)]
        ours = run_options(run, options, checkpoint_every=checkpoint_every, more=record)
        plain = {name: value for name, value in options.items() if name not in (*_OURS, "enable_checkpointing")}
        made = make_trainer(functools.partial(pl.Trainer, **plain), run, ours["callbacks"], ours["logger"])
        train(made, module, datamodule, run)
        if (received := received_signal(made)) is not None:  # when no step was left
            raise Stopped(received, made.global_step)
    return Run(run)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Convert exceptions after a signal to KeyboardInterrupt (Ctrl-C) or `Terminated` (SIGTERM)."""
    with terminating():
        try:
            yield
        except SIGTERMException as stop:
            if isinstance(stop, Stopped) and stop.number == signal.SIGINT:
                raise KeyboardInterrupt from stop
            raise Terminated(128 + signal.SIGTERM) from stop
        except SystemExit as leave:
            if isinstance(leave.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None  # Lightning makes exit(1) of it
            raise


class _RecordSettings(pl.Callback):
    """Write `RUN/config.yaml`, with which `mmtune fit --config` repeats the run."""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        self._run, self._settings = run, settings

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the settings before anything is computed, and pass them to the loggers."""
        assert isinstance(pl_module, InstructionTuning)
        model = {**self._settings["model"], "template_date": pl_module.spec.template_date}
        settings = _plain({**self._settings, "model": model})
        if trainer.is_global_zero:
            with atomic_path(self._run / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            for logger in trainer.loggers:
                logger.log_hyperparams(settings)


def _plain(value: Any) -> Any:
    """Convert settings to types that YAML can represent; other objects are omitted."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if _has_form(one)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value if _has_form(one)]
    return str(value) if isinstance(value, Path) else value


def _has_form(value: Any) -> bool:
    return is_dataclass(value) or isinstance(value, str | int | float | bool | None | Mapping | list | tuple | Path)
