"""Lightning's early stopping works on our validation loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fit = Callable[..., int]


@pytest.fixture
def flags(text_rows: Path, lora_flags: list[str]) -> list[str]:
    return [f"--data.train.text=[{text_rows}]", "--data.pack_rows=4", *lora_flags]


def test_early_stopping_ends_the_run_and_saves_the_model(
    fit: Fit, flags: list[str], text_rows: Path, tmp_path: Path, read_run: Callable[[Path, str], Any]
) -> None:
    flags = [*flags, f"--data.validation=[{text_rows}]", "--trainer.max_epochs=5", "--model.learning_rate=1e-9"]
    flags += ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"]
    flags += ["--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.patience=1"]
    flags += ["--trainer.callbacks.min_delta=0.01"]
    assert fit(tmp_path / "run", *flags) == 0
    assert read_run(tmp_path / "run", "ledger.json")["steps"] == 2 * 10  # of 50
    assert (tmp_path / "run" / "model").is_dir()
