"""The loss is the mean over the tokens of an optimizer step, however its packs are spread over time and processes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmtune.training.module import InstructionTuning

Fit = Callable[..., int]
Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The gradients of every optimizer step from here on."""
    steps: list[dict[str, torch.Tensor]] = []
    log = InstructionTuning.on_before_optimizer_step

    def note(module: InstructionTuning, optimizer: Any) -> None:
        log(module, optimizer)
        found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        steps.append(found)

    monkeypatch.setattr(InstructionTuning, "on_before_optimizer_step", note)
    return steps


@pytest.fixture
def read_metrics() -> Callable[[Path], list[dict[str, float]]]:
    def read(run: Path) -> list[dict[str, float]]:
        with (run / "metrics.csv").open() as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]

    return read


@pytest.fixture
def uneven_rows(tmp_path: Path) -> Path:
    """Answers of one byte to forty: a mean of the packs' means is far from the mean over the tokens."""
    rows = [{"prompt": f"Say {n}", "completion": "x" * n} for n in (1, 40, 3, 12)]
    file = tmp_path / "uneven.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_accumulated_packs_are_one_large_pack(
    read_metrics: Callable[[Path], list[dict[str, float]]],
    fit: Fit,
    lora_flags: list[str],
    uneven_rows: Path,
    tmp_path: Path,
    gradients: list[dict[str, torch.Tensor]],
) -> None:
    flags = [f"--data.train.text=[{uneven_rows}]", *lora_flags, "--model.lora.dropout=0"]
    assert fit(tmp_path / "large", *flags, "--data.pack_tokens=1024") == 0
    assert fit(tmp_path / "small", *flags, "--data.pack_rows=1", "--trainer.accumulate_grad_batches=4") == 0
    # three in the first step, and the fourth alone
    assert fit(tmp_path / "rest", *flags, "--data.pack_rows=1", "--trainer.accumulate_grad_batches=3") == 0
    large, small, first, alone = gradients
    assert large.keys() == small.keys() == first.keys()
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    (large_row,), (small_row,) = read_metrics(tmp_path / "large"), read_metrics(tmp_path / "small")
    assert small_row["train_loss"] == pytest.approx(large_row["train_loss"], rel=1e-4)
    assert small_row["lr_language"] == large_row["lr_language"] > 0
    some = next(name for name in large if "lora_B" in name)
    assert (first[some] - large[some]).norm() > 0.05 * large[some].norm()
    assert alone[some].norm() > 0


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", "mixed"),
        ("fsdp", "mixed"),  # which have text, photos and a resume; the slow ones have one of them
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("ddp", "text"), ("ddp", "visual"), ("fsdp", "text"))),
    ],
)
def test_two_processes_are_one(
    fit: Fit,
    base_flags: list[str],
    lora_flags: list[str],
    vision_flags: list[str],
    text_rows: Path,
    visual_rows: Path,
    tmp_path: Path,
    weights_of: Weights,
    strategy: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mixed: six rows with photos among fourteen, so that in some rounds one process has photos and the other none."""
    flags = [*lora_flags, *vision_flags, "--model.lora.dropout=0", "--data.pack_rows=1", "--model.learning_rate=1e-3"]
    flags += ["--model.projector_learning_rate=1e-3", "--model.lora.targets=[q_proj,down_proj]"]
    if kind != "visual":
        flags += [f"--data.train.text=[{text_rows}]", f"--data.train.total={8 if kind == 'text' else 14}"]
    if kind != "text":
        flags += [f"--data.train.visual=[{visual_rows}]"]
    if kind == "mixed":
        flags += [f"--data.train.text_fraction={8 / 14}"]
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache_of_one"))
    assert fit(tmp_path / "one", *flags, "--trainer.accumulate_grad_batches=2") == 0
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache_of_two"))  # where the two store the photos between them
    # the config for several GPUs, on as many processes of a CPU
    command = [sys.executable, "-m", "mmtune.cli.main", "fit", "--config", strategy, *base_flags, *flags]
    command += [f"--out={tmp_path / 'two'}", "--trainer.devices=2", "--checkpoint_every=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    def run() -> dict[str, torch.Tensor]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return weights_of(tmp_path / "two")

    one, two = weights_of(tmp_path / "one"), run()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    ledgers = [json.loads((tmp_path / run / "ledger.json").read_text()) for run in ("one", "two")]
    for field in ("samples", "tokens", "flops", "tower_passes"):
        assert ledgers[0][field] == ledgers[1][field], field
    assert bool(ledgers[1]["tower_passes"]) == (kind != "text")
    if kind == "mixed":  # and it resumes: as if it had been killed after its last checkpoint
        shutil.rmtree(tmp_path / "two" / "model")
        again = run()
        assert all(torch.equal(again[name], tensor) for name, tensor in two.items())


@pytest.mark.parametrize("adapters", [True, False])
def test_mixed_precision_learns_what_float32_does(
    fit: Fit, lora_flags: list[str], vision_flags: list[str], text_rows: Path, tmp_path: Path, adapters: bool
) -> None:
    """As every recipe trains: frozen weights and products in bfloat16, what is trained in float32."""
    flags = [f"--data.train.text=[{text_rows}]", "--data.train.total=8", "--data.pack_rows=4", *vision_flags]
    flags += [*lora_flags, "--model.lora.dropout=0"] if adapters else ["--model.learning_rate=0.001"]
    assert fit(tmp_path / "float32", *flags) == 0
    mixed = ["--trainer.precision=bf16-mixed", "--model.dtype=bfloat16"]
    assert fit(tmp_path / "mixed", *flags, *mixed) == 0
    losses = []
    for run in ("float32", "mixed"):
        with (tmp_path / run / "metrics.csv").open() as stream:
            losses.append([float(row["train_loss"]) for row in csv.DictReader(stream)])
        trained = [*(tmp_path / run / "model").rglob("*.safetensors")]
        dtypes = {t.dtype for file in trained for t in safetensors.torch.load_file(file).values()}
        assert dtypes == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_weights_of_16_bits_are_not_trained(
    fit: Fit, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", f"--data.train.text=[{text_rows}]", "--trainer.precision=bf16-true") == 2
    assert "--trainer.precision bf16-true: " in capsys.readouterr().err
