"""A run on a GPU that was interrupted goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from device.conftest import BF16, FP16, FROZEN, Flags, Run
from mmtune.training.module import InstructionTuning

LORA = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0.1"]  # which draws numbers on the device


class StoppedError(Exception):
    pass


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}:{name}": tensor
        for file in sorted((run.folder / "model").rglob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(file).items()
    }


@pytest.mark.parametrize("flags", [[], LORA, [*LORA, BF16, FROZEN], [FP16]], ids=["full", "lora", "bf16", "fp16"])
def test_interrupted_runs_end_as_whole_ones(
    fit: Callable[..., Run], both: Flags, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*both, *flags, "--checkpoint_every=2", "--data.pack_rows=2", "--trainer.deterministic=true"]
    whole = fit(*flags, name="whole", steps=6)

    def stop(module: Any, batch: Any, batch_idx: int) -> None:
        if module.trainer.global_step == 3:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(InstructionTuning, "on_train_batch_start", stop)
        with pytest.raises(StoppedError):
            fit(*flags, name="resumed", steps=6)
    resumed = fit(*flags, name="resumed", steps=6)
    assert resumed.losses == whole.losses
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
