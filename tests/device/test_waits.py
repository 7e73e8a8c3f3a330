"""Places where the host waits for a GPU: few a step and a token, and none a document or a layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from device.conftest import Flags, Run
from device.pretended.waits import Waits
from mmtune import VisionLanguageModel
from mmtune.training.module import InstructionTuning

A_STEP, A_TOKEN = 7, 4
LORA = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0"]
BF16, FP16 = "--trainer.precision=bf16-mixed", "--trainer.precision=16-mixed"
Counted = Callable[[Waits], AbstractContextManager[Any]]

STEPS = {
    "float32": [],
    "bf16": [BF16],
    "fp16": [FP16],
    "lora": [*LORA, BF16, "--model.dtype=bfloat16"],
    "checkpointing": [*LORA, BF16, "--model.gradient_checkpointing=true"],
    "tower": [BF16, "--model.stored_features_gib=0"],
}


@pytest.mark.parametrize("flags", STEPS.values(), ids=STEPS)
def test_a_step(
    fit: Callable[..., Run], both: Flags, waits: Counted, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, before, documents = Waits(), list[Waits](), list[int]()

    def begin(self: InstructionTuning, batch: Any, batch_idx: int) -> None:
        before.append(counted.copy())
        documents.append(len(batch.where))

    monkeypatch.setattr(InstructionTuning, "on_train_batch_start", begin)
    with waits(counted):
        fit(*both, *flags, "--checkpoint_every=0", steps=8)
    per_step = [later - earlier for earlier, later in itertools.pairwise(before[2:])]
    assert len(per_step) >= 4
    assert len(set(documents[2:])) > 1  # so that waits a document would show
    for found in per_step:
        if found.total <= A_STEP:
            continue
        pytest.fail(f"{found.total} waits in a step:\n{found}")


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 1}, {"repetition_penalty": 1.1, "presence_penalty": 0.2}], ids=str
)
def test_a_token(llama: Path, waits: Counted, options: dict[str, float]) -> None:
    model, tokens = VisionLanguageModel.from_pretrained(llama, template="chatml", device="cuda"), 40
    prompts = [f"Say {n}, please: what is next? " + "More of it. " * n for n in range(5)]
    model.answer(prompts, max_tokens=tokens, **options)
    counted = [Waits(), Waits()]
    for found, count in zip(counted, (tokens // 2, tokens), strict=True):
        torch.cuda.synchronize()
        with waits(found):
            model.answer(prompts, max_tokens=count, **options)
    longer = counted[1] - counted[0]
    assert longer.total <= A_TOKEN * tokens // 2, f"{longer.total} waits for {tokens // 2} more tokens:\n{longer}"
