"""The evaluator with mmtune's own model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_models import POPE, SUITE, small_data

import mmtune.evaluation.run.engine as engine
from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.load_model import fold_adapters, load_model
from mmtune.evaluation.run.results import Results
from mmtune.generation.generator import VisionLanguageModel


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SUITE)
    return small_data(tmp_path)


def score(data: Path, model: Any, **options: Any) -> Results:
    return evaluate(model, data / "small.yaml", data_root=data, device="cpu", progress=False, **options)


def test_likelihoods_are_those_of_the_model(data: Path, tuned_model: Path) -> None:
    results = score(data, tuned_model, answering="likelihood")
    model = VisionLanguageModel.from_pretrained(tuned_model)
    with torch.inference_mode():
        sample = results.samples["boolq"][0]
        alone = model.loglikelihood([sample.prompt], [["yes", "no"]], response_prefix='The best answer is "')[0]
    assert sample.loglikelihoods == pytest.approx(alone, abs=1e-4)
    assert sample.prediction == ("yes" if alone[0] >= alone[1] else "no")
    assert all(math.isfinite(f) for s in results.samples["openbookqa"] for f in s.loglikelihoods or () if f is not None)
    assert len({s.loglikelihoods for s in results.samples["pope"]}) > 1


@pytest.mark.parametrize("answering", ["generate", "likelihood"])
def test_sharing_and_memory_change_the_cost_and_not_the_answers(data: Path, tuned_model: Path, answering: str) -> None:
    shared = score(data, tuned_model, answering=answering)
    apart = score(data, tuned_model, answering=answering, share_prefixes=False, batch_tokens=600)
    for name in shared.samples:
        for one, other in zip(shared.samples[name], apart.samples[name], strict=True):
            assert (one.response, one.prediction) == (other.response, other.prediction)
            assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-3)
    assert shared.cost["reused_tokens"] > 0 == apart.cost["reused_tokens"]
    assert shared.cost["prompt_tokens"] < apart.cost["prompt_tokens"]
    assert shared.tasks["pope"].cost["tower_passes"] == len({row["image"]["bytes"] for row in POPE})


def test_adapters_are_folded_in_and_the_model_keeps_its_name(data: Path, tuned_model: Path, tmp_path: Path) -> None:
    model = load_model(tuned_model, "cpu")
    assert isinstance(model, VisionLanguageModel)
    before = model.fingerprint
    out = tmp_path / "out"
    by_path = score(data, tuned_model, out=out, tasks=["boolq"])
    fold_adapters(model)
    assert model.spec.lora is None
    again = score(data, tuned_model, out=out, tasks=["boolq"])
    assert again.cost == by_path.cost, "nothing was asked again"
    assert VisionLanguageModel.from_pretrained(tuned_model).fingerprint == before


def test_a_model_given_as_an_object_is_left_as_it_is(data: Path, tuned_model: Path) -> None:
    model = VisionLanguageModel.from_pretrained(tuned_model)
    before = model.fingerprint
    score(data, model, tasks=["boolq"], limit=2)
    assert model.fingerprint == before
    assert model.spec.lora is not None


def test_a_device_that_is_not_there(data: Path, tuned_model: Path) -> None:
    with pytest.raises(UserError, match=r"--device cuda:99: cannot be used here"):
        engine.evaluate(tuned_model, data / "small.yaml", data_root=data, device="cuda:99", progress=False)


def test_each_process_takes_its_own_card(monkeypatch: pytest.MonkeyPatch, tuned_model: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(device))
    monkeypatch.setattr(VisionLanguageModel, "from_pretrained", lambda path, **_: path)
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        load_model(tuned_model)
    assert [str(device) for device in asked] == ["cuda:0", "cuda:1", "cuda:0"]
