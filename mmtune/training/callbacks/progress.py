"""Progress of a training run on stderr: a progress bar on a terminal, otherwise a line every 30 seconds."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from mmtune.data.collate import PackedBatch
from mmtune.models.cost.flops import count_parameters

_SECONDS_BETWEEN_LINES = 30
_STEPS_OF_SPEED = 20  # latest steps, from which tokens per second and the remaining time are computed


class TrainingProgress(ProgressBar):
    """Show the progress of the whole run, also of a resumed one.

    It shows steps, loss, tokens per second, elapsed time of this part, and remaining time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._steps = self._step = self._tokens = 0
        self._begun = self._said = 0.0
        # (time, step, tokens of this part) after each of the latest steps
        self._latest: deque[tuple[float, int, int]] = deque(maxlen=_STEPS_OF_SPEED + 1)

    def disable(self) -> None:
        """Disable the output; Lightning calls this in all processes except the first."""
        self._console.quiet = True

    def enable(self) -> None:
        """Enable the output again."""
        self._console.quiet = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self._console.print(*args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the number of parameters, rows and steps, and start the progress bar."""
        trained, total = count_parameters(pl_module)
        self._steps, self._step = int(trainer.estimated_stepping_batches), trainer.global_step
        rows = trainer.datamodule.record["rows"]["train"]  # type: ignore[attr-defined]
        self._say(
            f"Training {_millions(trained)} of {_millions(total)} parameters on {rows:,} rows in {self._steps:,} steps"
        )
        self._begun = time.perf_counter()
        self._latest.append((self._begun, self._step, 0))
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=self._steps, completed=self._step, said="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Update the progress after the last batch of an optimizer step."""
        self._tokens += len(batch.input_ids) * trainer.world_size  # the other processes' packs are about as long
        if trainer.global_step == self._step:
            return
        self._step, now = trainer.global_step, time.perf_counter()
        self._latest.append((now, self._step, self._tokens))
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, said=self._figures(trainer))
        elif now - self._said >= _SECONDS_BETWEEN_LINES or self._step == self._steps:
            self._said = now
            self._say(f"step {self._step:,} of {self._steps:,}: {self._figures(trainer)}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that validation is running."""
        if self._bar is not None:
            self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that training continues."""
        if self._bar is not None:
            self._bar.update(self._task, description="training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the progress bar in its final state."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the progress bar in its current state, so that the error is printed below it."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _figures(self, trainer: pl.Trainer) -> str:
        (then, step_then, tokens_then), (now, step, tokens) = self._latest[0], self._latest[-1]
        left = (self._steps - step) * (now - then) / (step - step_then)
        return (
            f"loss {float(trainer.callback_metrics['train_loss']):.3f}, {(tokens - tokens_then) / (now - then):,.0f} "
            f"tokens/s, {_clock(now - self._begun)} gone, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"
