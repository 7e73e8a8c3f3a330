"""NF4 and 8 bits through bitsandbytes, on this machine's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models import language
from mmtune.models.adapters import uncalled_layers
from mmtune.models.cost.flops import count_parameters
from mmtune.models.spec import LoraOptions, ModelSpec, Quantisation
from mmtune.training.objectives.token_loss import supervised_loss
from tests.models.families import save_hybrid

pytest.importorskip("bitsandbytes")
KINDS = ("nf4", "int8")


def quantised(llama_of_64s: Path, kind: Quantisation | None, lora: LoraOptions | None = None) -> VisionLanguageModel:
    return VisionLanguageModel.assemble(
        ModelSpec(str(llama_of_64s), template="chatml", lora=lora, quantise=kind)
    ).eval()


def answer_likelihood(model: VisionLanguageModel) -> float:
    return model.loglikelihood(["what?"], [["an answer of some bytes"]])[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_are_small_and_nearly_the_same(llama_of_64s: Path, kind: Quantisation) -> None:
    exact, small = quantised(llama_of_64s, None), quantised(llama_of_64s, kind)

    def size(model: VisionLanguageModel) -> int:
        return sum(p.numel() * p.element_size() for p in model.base_language.base_model.layers.parameters())

    assert size(small) < size(exact) * (0.16 if kind == "nf4" else 0.3)
    assert small.base_language.get_output_embeddings().weight.dtype == torch.float32
    assert answer_likelihood(small) != answer_likelihood(exact)
    assert answer_likelihood(small) == pytest.approx(answer_likelihood(exact), rel=0.15)
    assert small.fingerprint != exact.fingerprint


def test_packed_weights_count_as_what_they_stand_for(llama_of_64s: Path) -> None:
    adapters = LoraOptions(r=4)
    counts = {count_parameters(quantised(llama_of_64s, kind, adapters)) for kind in (None, "nf4", "int8")}
    assert len(counts) == 1
    ((trained, total),) = counts
    assert 0 < trained < total / 2


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_on_frozen_bits(llama_of_64s: Path, kind: Quantisation, example: Any, packed: Any) -> None:
    model = quantised(llama_of_64s, kind, LoraOptions(r=4, alpha=8, dropout=0.0))
    model.set_stage("tune")
    model.train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert any(p.dtype in (torch.uint8, torch.int8) for p in frozen.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    batch = packed(model, [example(model, "what is it?", "a small thing"), example(model, "and this?", "another")])
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = supervised_loss(model(batch), batch.targets, model.output_layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_between_two_steps_changes_no_gradient(
    llama_of_64s: Path, kind: Quantisation, example: Any, packed: Any
) -> None:
    model = quantised(llama_of_64s, kind, LoraOptions(r=4, alpha=8, dropout=0.0))
    model.set_stage("tune")
    batch = packed(model, [example(model, "what is it?", "a small thing")])
    found = []
    for _ in range(2):
        model.train()
        model.zero_grad()
        supervised_loss(model(batch), batch.targets, model.output_layer).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.eval()
        answer_likelihood(model)
    before, after = found
    assert sum(float(gradient.abs().max()) > 0 for gradient in before.values()) == 14
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_weights_that_are_read_without_their_layer_stay_whole(
    family: str, kind: Quantisation, llama: Path, tmp_path: Path
) -> None:
    folder = save_hybrid(family, tmp_path / family, llama)
    model = VisionLanguageModel.assemble(ModelSpec(str(folder), template="chatml", quantise=kind)).eval()
    kept = {
        name.rpartition(".")[2] for name, module in model.language.named_modules()
        if type(module) is nn.Linear and "router" not in name
    }  # fmt: skip
    assert kept == {"lm_head", *uncalled_layers(model.language)}
    assert "dt_proj" in kept
    exact = VisionLanguageModel.assemble(ModelSpec(str(folder), template="chatml")).eval()
    assert answer_likelihood(model) == pytest.approx(answer_likelihood(exact), rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_change_are_refused(kind: Quantisation, llama: Path, tmp_path: Path) -> None:
    folder = save_hybrid("rwkv", tmp_path / "rwkv", llama)
    with pytest.raises(UserError, match=f"--model.quantise {kind}: .* rwkv rescales its weights when it answers"):
        language.load_language(str(folder), quantise=kind)


def test_a_saved_run_says_how_it_was_quantised(llama_of_64s: Path, tmp_path: Path) -> None:
    model = quantised(llama_of_64s, "nf4", LoraOptions(r=4, alpha=8, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "model")
    again = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert again.spec.quantise == "nf4"
    assert answer_likelihood(again) == answer_likelihood(model)
    with pytest.raises(UserError, match="nf4: adapters are not folded into quantised weights"):
        again.merge_adapters()


def test_bitsandbytes_that_is_missing_is_named(llama_of_64s: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        quantised(llama_of_64s, "int8")
