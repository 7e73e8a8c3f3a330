"""How often the host waits for a GPU: budgets for a training step, and for a generated token of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from device.card.waits import Waits
from device.conftest import BF16, FP16, FROZEN, Flags, Run
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Prompt, SamplingParams
from mmtune.models.decoding.sampler import Sampler
from mmtune.models.spec import ModelSpec
from mmtune.training.module import InstructionTuning

A_STEP, A_TOKEN = 7, 4
LORA = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0.1"]
Counting = Callable[[Waits], AbstractContextManager[Any]]


@dataclass
class Step:
    """A training step: its waits, and the documents of its pack."""

    waits: Waits
    documents: int


@pytest.fixture
def steps_of(fit: Callable[..., Run], waits: Counting, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Step]]:
    """Return the steps of a run, but for the first two, which prepare what later ones use, and the last."""

    def measure(*flags: str, **options: Any) -> list[Step]:
        found, begun = Waits(), list[tuple[Waits, int]]()

        def note(module: Any, batch: Any, batch_idx: int) -> None:
            begun.append((found.copy(), len(batch.where)))

        monkeypatch.setattr(InstructionTuning, "on_train_batch_start", note)
        with waits(found):
            fit(*flags, "--checkpoint_every=0", steps=8, **options)
        taken = [Step(after - before, n) for (before, n), (after, _) in itertools.pairwise(begun)]
        assert len(taken) >= 6
        return taken[2:]

    return measure


KINDS = {
    "text float32": [],
    "text bf16": [BF16],
    "text fp16": [FP16],
    "lora bf16": [*LORA, BF16, FROZEN],
    "checkpointing": [*LORA, BF16, FROZEN, "--model.gradient_checkpointing=true"],
    "clipping": [BF16, "--trainer.gradient_clip_val=1.0"],
}


@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_a_step(steps_of: Callable[..., list[Step]], text: Flags, flags: Flags) -> None:
    for step in steps_of(*text, *flags):
        assert step.waits.total <= A_STEP, f"{step.waits.total} waits of a step:\n{step.waits}"


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("flags", [[BF16], [*LORA, BF16, FROZEN]], ids=["full", "lora"])
def test_a_step_with_images(steps_of: Callable[..., list[Step]], both: Flags, flags: Flags, stored: bool) -> None:
    store = [] if stored else ["--model.stored_features_gib=0"]
    for step in steps_of(*both, *flags, *store):
        assert step.waits.total <= A_STEP, f"{step.waits.total} waits of a step:\n{step.waits}"


def most(steps: list[Step]) -> Waits:
    return max((step.waits for step in steps), key=lambda waits: waits.total)


@pytest.mark.parametrize("flags", [[], [BF16]], ids=["float32", "bf16"])
def test_no_document_adds_waits(steps_of: Callable[..., list[Step]], text: Flags, flags: Flags) -> None:
    few, many = (steps_of(*text, *flags, f"--data.pack_rows={n}", name=f"rows_{n}") for n in (1, 5))
    assert max(step.documents for step in few) < min(step.documents for step in many)
    more = most(many) - most(few)
    assert not more.total, f"added by documents:\n{more}"


@pytest.mark.parametrize("flags", [[], [BF16], [*LORA, BF16, FROZEN]], ids=["float32", "bf16", "lora"])
def test_no_layer_adds_waits(
    steps_of: Callable[..., list[Step]], text: Flags, flags: Flags, llama: Path, deeper_llama: Path
) -> None:
    few, many = (steps_of(*text, *flags, language=folder, name=folder.name) for folder in (llama, deeper_llama))
    more = most(many) - most(few)
    assert not more.total, f"added by layers:\n{more}"


SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 1},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "several": {"n": 3, "temperature": 1.0, "seed": 1},
    "logprobs": {"logprobs": True},
}


@pytest.mark.near_ties
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
def test_a_token(
    waits: Counting, llama: Path, deeper_llama: Path, device: torch.device, options: dict[str, Any],
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Count the waits between the 10th and the 26th token of a batch, in models of two and of five blocks."""
    found = []
    for folder in (llama, deeper_llama):
        model = VisionLanguageModel.assemble(ModelSpec(str(folder), template="chatml"), dtype=dtype).to(device).eval()
        model.graphs.allowed = False
        monkeypatch.setattr(model, "end_ids", list)  # so that all answers are equally long
        counted, at = Waits(), list[Waits]()
        extend = Sampler.extend

        def note(self: Sampler, *given: Any, at: Any = at, counted: Any = counted, extend: Any = extend) -> None:
            extend(self, *given)
            at.append(counted.copy())

        with monkeypatch.context() as patch, waits(counted):
            patch.setattr(Sampler, "extend", note)
            prompts = [Prompt.of(f"Question {number}") for number in range(4)]
            model.generate(prompts, SamplingParams(max_tokens=30, **options))
        found.append(at[25] - at[9])
        each = found[-1].total / 16
        assert each <= A_TOKEN, f"{each:.1f} waits a token; of 16 tokens:\n{found[-1]}"
    more = found[1] - found[0]
    assert not more.total, f"added by layers, in 16 tokens:\n{more}"
