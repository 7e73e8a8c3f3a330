"""Training on a GPU, in every precision and with every kind of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from device.conftest import BF16, FP16, FROZEN, Flags, Run

LORA = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0"]
Fit = Callable[..., Run]

TEXT = {
    "full": [],
    "full bf16": [BF16],
    "full fp16": [FP16],
    "lora bf16": [*LORA, BF16, FROZEN],
    "lora fp16": [*LORA, FP16, FROZEN],
    "dora": [*LORA, "--model.lora.dora=true", BF16, FROZEN],
    "checkpointing": [*LORA, BF16, FROZEN, "--model.gradient_checkpointing=true"],
    "clipping": [BF16, "--trainer.gradient_clip_val=1.0"],
    "accumulation": [BF16, "--trainer.accumulate_grad_batches=2"],
    "deterministic": [BF16, "--trainer.deterministic=true"],
    "validation": [BF16, "--data.validation_fraction=0.3", "--trainer.val_check_interval=1"],
    "workers": [BF16, "--data.num_workers=1"],
}
QUANTISED = {
    "nf4": [*LORA, BF16, FROZEN, "--model.quantise=nf4"],
    "nf4 float32": [*LORA, "--model.quantise=nf4"],
    "int8": [*LORA, BF16, FROZEN, "--model.quantise=int8"],
}
OPTIMIZERS = {name: [BF16, f"--model.optimizer={name}"] for name in ("adamw_8bit", "paged_adamw_8bit")}


@pytest.mark.parametrize("flags", TEXT.values(), ids=TEXT)
def test_text(fit: Fit, text: Flags, flags: Flags) -> None:
    run = fit(*text, *flags)
    assert run.losses[-1] < run.losses[0] - 1
    assert run.ledger["hardware"]["gpus"]
    assert run.ledger["peak_memory_bytes"]["device"] > 0


@pytest.mark.parametrize("flags", (QUANTISED | OPTIMIZERS).values(), ids=QUANTISED | OPTIMIZERS)
def test_bitsandbytes(fit: Fit, text: Flags, flags: Flags, llama_of_64s: Path) -> None:
    run = fit(*text, *flags, language=llama_of_64s)
    assert run.losses[-1] < run.losses[0] - 1


ALIGN = "--model.stage=align"
IMAGES = {
    "align": [ALIGN],
    "align bf16": [ALIGN, BF16, FROZEN],
    "full bf16": [BF16],
    "full fp16": [FP16],
    "lora": LORA,
    "lora bf16": [*LORA, BF16, FROZEN],
    "lora fp16": [*LORA, FP16, FROZEN],
    "checkpointing": [*LORA, BF16, FROZEN, "--model.gradient_checkpointing=true"],
    "validation": [*LORA, BF16, FROZEN, "--data.validation_fraction=0.4", "--trainer.val_check_interval=1"],
    "nf4": [*LORA, BF16, FROZEN, "--model.quantise=nf4"],
    "int8": [*LORA, BF16, FROZEN, "--model.quantise=int8"],
}


@pytest.mark.parametrize("flags", IMAGES.values(), ids=IMAGES)
def test_images(fit: Fit, visual: Flags, flags: Flags, llama_of_64s: Path) -> None:
    run = fit(*visual, *flags, language=llama_of_64s)
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize("flags", [[], LORA], ids=["full", "lora"])
def test_float32_is_what_a_cpu_computes(fit: Fit, both: Flags, flags: Flags) -> None:
    there, here = fit(*both, *flags), fit(*both, *flags, name="cpu", device="cpu")
    assert there.losses == pytest.approx(here.losses, rel=1e-5)


@pytest.mark.parametrize("flags", [[BF16], [*LORA, BF16, FROZEN], LORA], ids=str)
def test_stored_features_are_those_of_the_tower(fit: Fit, both: Flags, flags: Flags, pretended: bool) -> None:
    stored = fit(*both, *flags)
    computed = fit(*both, *flags, "--model.stored_features_gib=0", name="computed")
    # kernels of a real GPU round as the number of images asks them to
    assert computed.losses == pytest.approx(stored.losses, rel=1e-6 if pretended else 2e-3)


def test_too_little_memory_ends_in_a_line(
    fit: Fit, text: Flags, memory_left: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Give less memory than weights and their optimizer take."""
    memory_left(2**19)
    fit(*text, BF16, exit_code=2)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mmtune: error")]
    assert len(errors) == 1
    assert "out of memory; lower --data.pack_tokens" in errors[0]


def test_skipped_steps_are_counted(
    fit: Fit, text: Flags, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start with a loss scale that overflows: the first steps change no weight, and the learning rate stays."""
    plain = fit(*text, FP16, steps=8)
    assert plain.ledger["skipped_steps"] == 0
    scaler: Any = torch.amp.GradScaler
    original = scaler.__init__
    monkeypatch.setattr(scaler, "__init__", lambda self, *a, **k: original(self, *a, **{**k, "init_scale": 2.0**20}))
    run = fit(*text, FP16, steps=8, name="skipping")
    skipped = run.ledger["skipped_steps"]
    assert 0 < skipped < 8
    assert f"{skipped} of 8 steps changed no weight" in capfd.readouterr().err
    rates = run.column("lr_language")
    assert rates[:skipped] == [rates[0]] * skipped
    assert rates[skipped:] == plain.column("lr_language")[: 8 - skipped]
