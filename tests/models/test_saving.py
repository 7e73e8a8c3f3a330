from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

Build = Callable[..., VisionLanguageModel]

IN_ANOTHER_PROCESS = """
import sys, torch
from mmtune import VisionLanguageModel
from mmtune.data.collate import PackedBatch
model = VisionLanguageModel.from_pretrained(sys.argv[1])
batch = PackedBatch(**torch.load(sys.argv[2], weights_only=True))
with torch.no_grad():
    embeddings = model.embed(batch)
    logits = model.language(inputs_embeds=embeddings[None]).logits
torch.save({"logits": logits, "fingerprint": model.fingerprint}, sys.argv[3])
"""


def logits(model: VisionLanguageModel, batch: PackedBatch) -> torch.Tensor:
    with torch.no_grad():
        embeddings = model.embed(batch)
        result: torch.Tensor = model.language(inputs_embeds=embeddings[None]).logits
    return result


def changed(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model with every trained weight moved a little, as training does."""
    generator = torch.Generator().manual_seed(7)
    model.set_stage("tune")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        if model.tower is not None:
            model.tower.feature_mean.add_(0.1)
    return model


@pytest.fixture(scope="module")
def batch(
    seeing_model: VisionLanguageModel,
    example: Callable[..., Example],
    packed: Callable[[VisionLanguageModel, list[Example]], PackedBatch],
) -> PackedBatch:
    return packed(seeing_model, [example(seeing_model, "what is it?", "this", (0, 1))])


@pytest.fixture(scope="module")
def saved(build: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionLanguageModel, Path]:
    model = changed(build(vision=True, lora=LoraOptions(r=4, alpha=8)))
    run = tmp_path_factory.mktemp("run")
    model.save_pretrained(run / "model")
    return model, run


@pytest.mark.cpu_only("the other process computes on the CPU")
@pytest.mark.parametrize("lora", [LoraOptions(r=4, alpha=8), LoraOptions(r=4, dora=True), None])
def test_another_process_gives_the_same_logits_bit_for_bit(
    build: Build, batch: PackedBatch, tmp_path: Path, lora: LoraOptions | None
) -> None:
    model = changed(build(vision=True, lora=lora))
    model.save_pretrained(tmp_path / "run" / "model")
    fields = {name: value for name, value in vars(batch).items() if name != "layout"}  # which the other one finds
    torch.save(fields, tmp_path / "given.pt")
    paths = [str(tmp_path / name) for name in ("run", "given.pt", "result.pt")]
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, *paths], check=True, capture_output=True)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    expected = logits(model, batch)
    assert torch.equal(result["logits"], expected)
    assert result["fingerprint"] == model.fingerprint


def test_only_what_was_trained_is_saved(saved: tuple[VisionLanguageModel, Path], llama: Path) -> None:
    model, run = saved
    files = {str(p.relative_to(run / "model")): p.stat().st_size for p in (run / "model").rglob("*") if p.is_file()}
    assert set(files) == {
        "mmtune.json",
        "projector.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert trained <= files["projector.safetensors"] + files["adapter/adapter_model.safetensors"] < trained + 12_000
    assert sum(files.values()) < (llama / "model.safetensors").stat().st_size / 2


def test_the_adapter_names_the_base_as_it_was_given(saved: tuple[VisionLanguageModel, Path]) -> None:
    model, run = saved
    config = json.loads((run / "model" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == model.spec.language


def test_local_paths_are_found_from_another_folder(
    build: Build, llama: Path, tower_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(llama, tmp_path / "here" / "llama")
    shutil.copy(tower_weights, tmp_path / "here" / "tower.pth")
    monkeypatch.chdir(tmp_path / "here")
    tower = VisionOptions("timm:test_vit", "tower.pth", grid=2)
    model = VisionLanguageModel.assemble(ModelSpec("llama", tower, template="chatml", lora=LoraOptions(r=2)))
    model.save_pretrained(tmp_path / "run" / "model")
    monkeypatch.chdir(tmp_path / "there")
    again = VisionLanguageModel.from_pretrained(tmp_path / "run")
    assert again.spec.language == str(tmp_path / "here" / "llama")
    assert again.spec.vision is not None
    assert again.spec.vision.weights == str(tmp_path / "here" / "tower.pth")
    assert again.spec.vision.tower == "timm:test_vit"


def test_plain_peft_loads_the_adapter(saved: tuple[VisionLanguageModel, Path], llama: Path, batch: PackedBatch) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, run = saved
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, run / "model" / "adapter").to(model.device).eval()
    with torch.no_grad():
        embeddings = model.embed(batch)
        assert torch.equal(plain(inputs_embeds=embeddings[None]).logits, logits(model, batch))


def test_a_full_finetune_is_saved_whole_and_loads_in_transformers(
    build: Build, tmp_path: Path, batch: PackedBatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = changed(build(vision=True))
    model.save_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "language").to(model.device)
    ours = dict(model.language.named_parameters())
    assert all(torch.equal(ours[n], p) for n, p in plain.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model" / "language")
    assert tokenizer("héllo <|im_end|>")["input_ids"] == model.tokenizer("héllo <|im_end|>")["input_ids"]
    shutil.move(tmp_path / "model", tmp_path / "moved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "moved", device=model.device)
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert again.fingerprint == model.fingerprint


def test_a_merged_model_is_saved_whole(
    saved: tuple[VisionLanguageModel, Path], tmp_path: Path, batch: PackedBatch
) -> None:
    model = VisionLanguageModel.from_pretrained(saved[1], device=saved[0].device)
    before = logits(model, batch)
    model.merge_adapters()
    model.save_pretrained(tmp_path / "model")
    again = VisionLanguageModel.from_pretrained(tmp_path, device=model.device)
    torch.testing.assert_close(logits(again, batch), before, rtol=1e-4, atol=1e-4)


def test_saving_again_replaces_the_model_and_leaves_nothing_behind(build: Build, tmp_path: Path) -> None:
    model = build(vision=True, lora=LoraOptions(r=2))
    model.save_pretrained(tmp_path / "model")
    changed(model).save_pretrained(tmp_path / "model")
    assert VisionLanguageModel.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_keeps_the_old_model(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(vision=True, lora=LoraOptions(r=2))
    model.save_pretrained(tmp_path / "model")
    before = model.fingerprint
    monkeypatch.setattr(model.language, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        changed(model).save_pretrained(tmp_path / "model")
    assert VisionLanguageModel.from_pretrained(tmp_path / "model").fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def delete(name: str) -> Callable[[Path], Any]:
    return lambda model: (model / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda model: (model / name).write_bytes(content)


def other_shape(name: str) -> Callable[[Path], Any]:
    def change(model: Path) -> None:
        state = safetensors.torch.load_file(model / name)
        safetensors.torch.save_file({k: torch.cat([v, v]) for k, v in state.items()}, model / name)

    return change


def edit_spec(**changes: Any) -> Callable[[Path], Any]:
    def change(model: Path) -> None:
        saved = json.loads((model / "mmtune.json").read_text())
        saved["spec"].update(changes)
        (model / "mmtune.json").write_text(json.dumps(saved))

    return change


ADAPTER = "adapter/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete("projector.safetensors"), r"projector\.safetensors: missing from the saved model"),
        (delete(ADAPTER), r"adapter_model\.safetensors: missing from the saved model"),
        (overwrite("projector.safetensors", b"x" * 40), r"projector\.safetensors: damaged"),
        (overwrite(ADAPTER, b""), r"adapter_model\.safetensors: damaged"),
        (other_shape("projector.safetensors"), "the projector does not fit"),
        (other_shape(ADAPTER), "the adapter does not fit"),
        (overwrite("mmtune.json", b"{"), r"mmtune\.json: not valid JSON"),
        (overwrite("mmtune.json", b"[]"), "not a model saved by this version"),
        (overwrite("mmtune.json", b'{"format": 99}'), "not a model saved by this version"),
        (overwrite("mmtune.json", b'{"format": 1}'), "lacks the model's parts"),
        (edit_spec(colour="red"), "colour"),
        (edit_spec(language="./gone"), "no such file or folder"),
        (edit_spec(template="vicuna_v2"), "did you mean 'vicuna_v1'"),
        (edit_spec(lora=None, language_trained=True), r"language: missing from the saved model"),
    ],
)
def test_a_damaged_model_names_the_file(
    saved: tuple[VisionLanguageModel, Path], tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(saved[1], tmp_path / "run")
    damage(tmp_path / "run" / "model")
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.from_pretrained(tmp_path / "run")


def test_a_run_that_is_not_there_is_no_hub_id() -> None:
    with pytest.raises(UserError, match="runs/not_trained: no such run; train it first"):
        VisionLanguageModel.from_pretrained("runs/not_trained")


@pytest.mark.parametrize("left", ["checkpoints", "config.yaml"])  # a run that ends early has no checkpoint yet
def test_an_unfinished_run_says_so(left: str, tmp_path: Path) -> None:
    (tmp_path / left).mkdir()
    with pytest.raises(UserError, match="has no model/ yet; finish it"):
        VisionLanguageModel.from_pretrained(tmp_path)
