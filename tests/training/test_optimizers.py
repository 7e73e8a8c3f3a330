"""AdamW with states of 8 bits."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmtune.common.errors import UserError
from mmtune.training.optimizers import build_optimizer, check_optimizer

Fit = Callable[..., int]

pytest.importorskip("bitsandbytes")


def test_8_bits_step_as_32_do() -> None:
    weights = {}
    for name in ("adamw", "adamw_8bit"):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(128, 64, generator=generator))
        before = weight.detach().clone()
        optimizer = build_optimizer(name, [{"params": [weight], "lr": 0.01, "name": "language"}], 0.1)  # type: ignore[arg-type]
        for _ in range(5):
            weight.grad = before + 0.1 * torch.randn(128, 64, generator=generator)
            optimizer.step()
        weights[name] = weight.detach() - before
        [state] = optimizer.state.values()
        sizes = {v.dtype for v in state.values() if isinstance(v, torch.Tensor) and v.numel() == weight.numel()}
        assert sizes == {torch.float32 if name == "adamw" else torch.uint8}
    difference = (weights["adamw_8bit"] - weights["adamw"]).norm() / weights["adamw"].norm()
    assert 0 < float(difference) < 0.05


def test_states_of_8_bits_are_resumed_exactly(
    fit: Fit, text_rows: Path, tmp_path: Path, same_weights: Callable[[Path, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = [f"--data.train.text=[{text_rows}]", "--data.pack_rows=4", "--model.learning_rate=1e-3"]
    flags += ["--checkpoint_every=4", "--trainer.max_epochs=2"]  # in full: adapters this small stay in 32 bits
    eight = "--model.optimizer=adamw_8bit"
    assert fit(tmp_path / "whole", *flags, eight) == 0
    with (tmp_path / "whole" / "metrics.csv").open() as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < losses[0] - 1
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "last.ckpt").unlink()  # and with it the last four steps
    assert fit(run, *flags) == 2
    assert "began with --model.optimizer adamw_8bit, not adamw" in capsys.readouterr().err
    assert fit(run, *flags, eight) == 0
    same_weights(run, tmp_path / "whole")


def test_paging_needs_a_gpu_to_page_from(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.train.text=[no_rows.jsonl]", "--model.lora.r=2", "--model.optimizer=paged_adamw_8bit"]
    assert fit(tmp_path / "run", *flags) == 2
    assert "--model.optimizer paged_adamw_8bit: " in capsys.readouterr().err.splitlines()[-1]
    check_optimizer("paged_adamw_8bit", torch.device("cuda"))


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_optimizer("adamw", torch.device("cpu"))
    with pytest.raises(UserError, match=r"--model\.optimizer adamw_8bit: needs bitsandbytes"):
        check_optimizer("adamw_8bit", torch.device("cpu"))
