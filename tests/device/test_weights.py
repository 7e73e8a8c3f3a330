"""Where weights are, and which values they begin with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from device.conftest import Flags
from mmtune.evaluation.run.load_model import load_model
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.fitness.check import fitness_of
from mmtune.models.language import load_config
from mmtune.models.spec import LoraOptions, ModelSpec, Quantisation
from mmtune.training.module import InstructionTuning

KINDS: list[Quantisation] = ["nf4", "int8"]
LORA = LoraOptions(r=4, alpha=8)


def tensors(owner: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of a module with its name: parameters, buffers, and what quantised weights keep beside them."""
    for path, module in owner.named_modules():
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for own, tensor in held:
            yield f"{path}.{own}", tensor
            for part in ("SCB", "CB"):
                if isinstance(getattr(tensor, part, None), torch.Tensor):
                    yield f"{path}.{own}.{part}", getattr(tensor, part)
            yield from _of_state(f"{path}.{own}", getattr(tensor, "quant_state", None))
        state = getattr(module, "state", None)  # of 8 bits, once the layer was called
        for part in ("SCB", "CB"):
            if isinstance(getattr(state, part, None), torch.Tensor):
                yield f"{path}.state.{part}", getattr(state, part)


def _of_state(name: str, state: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for part in ("absmax", "code", "offset"):
        if isinstance(getattr(state, part, None), torch.Tensor):
            yield f"{name}.quant_state.{part}", getattr(state, part)
    if getattr(state, "state2", None) is not None:
        yield from _of_state(f"{name}.nested", state.state2)


def elsewhere(model: nn.Module, device: torch.device) -> list[str]:
    """Return the names of tensors that are not on a device."""
    found = dict(tensors(model))
    assert any(name.endswith(("quant_state.absmax", "SCB")) for name in found)
    return [f"{name}: {tensor.device}" for name, tensor in found.items() if tensor.device != device]


@pytest.mark.parametrize("asked", ["device", "default"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_models_are_where_they_were_asked_to_be(
    kind: Quantisation, asked: str, device: torch.device, llama_of_64s: Path
) -> None:
    """Ask by the argument, as evaluation does, or by torch's default device, as Lightning does; and for the CPU."""
    spec = ModelSpec(str(llama_of_64s), template="chatml", lora=LORA, quantise=kind)
    fitness_of(load_config(spec.language), spec.language, sees=False)  # as `fit` does before it sets a default device
    for where in (device, torch.device("cpu")):
        with where if asked == "default" else nullcontext():
            model = VisionLanguageModel.assemble(spec, device=where if asked == "device" else None)
        model = model.to(where)
        assert elsewhere(model, where) == []
        model.loglikelihood(["hi"], [["there"]])
        assert elsewhere(model, where) == []


@pytest.mark.parametrize("kind", KINDS)
def test_saved_quantised_models_are_loaded_onto_the_device(
    kind: Quantisation, device: torch.device, llama_of_64s: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(str(llama_of_64s), template="chatml", lora=LORA, quantise=kind)
    VisionLanguageModel.assemble(spec).save_pretrained(tmp_path / "model")
    for name, where in (("cuda", device), ("auto", device), ("cpu", torch.device("cpu"))):
        loaded = load_model(str(tmp_path / "model"), name)
        assert isinstance(loaded, VisionLanguageModel)
        assert elsewhere(loaded, where) == []


def test_a_model_is_tried_under_any_default_device(device: torch.device, llama: Path, tmp_path: Path) -> None:
    """Build a model that this process has not tried yet, while torch's default device is the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(llama, tmp_path / "another")  # of other sizes, since the outcome of a trial is kept
    LlamaForCausalLM(LlamaConfig.from_pretrained(llama, intermediate_size=72)).save_pretrained(tmp_path / "another")
    with device:
        model = VisionLanguageModel.assemble(ModelSpec(str(tmp_path / "another"), template="chatml"))
    assert model.fitness.packed  # as that of any Llama


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_begin_as_on_the_cpu(dora: bool, device: torch.device, llama: Path) -> None:
    spec = ModelSpec(str(llama), template="chatml", lora=LoraOptions(r=4, alpha=8, dora=dora))
    fitness_of(load_config(spec.language), spec.language, sees=False)
    here = VisionLanguageModel.assemble(spec)
    with device:
        there = VisionLanguageModel.assemble(spec)
    names = [name for name, _ in here.named_parameters() if "lora_" in name]
    assert names
    for name in names:
        torch.testing.assert_close(there.get_parameter(name).cpu(), here.get_parameter(name), rtol=1e-6, atol=0)


def test_training_begins_as_on_the_cpu(
    device: torch.device, both: Flags, llama: Path, monkeypatch: pytest.MonkeyPatch, fit: Any
) -> None:
    """Compare the trained weights of `fit` before its first step."""
    begun: list[dict[str, torch.Tensor]] = []

    def note(module: InstructionTuning) -> None:
        begun.append({name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad})
        module._begin_step()

    monkeypatch.setattr(InstructionTuning, "on_train_start", note)
    for where in ("gpu", "cpu"):
        fit(*both, "--model.lora.r=4", "--model.lora.alpha=8", name=where, device=where, steps=1)
    there, here = begun
    assert there.keys() == here.keys()
    assert any("lora_A" in name for name in here)
    assert any("projector" in name for name in here)
    assert [name for name, tensor in here.items() if not torch.equal(tensor, there[name])] == []
