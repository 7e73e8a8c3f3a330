"""The released code's layout: whole models, LoRA adapters and aligned projectors, by their configs alone.

The weights are those of a `llava-hf` folder under the released code's names, so transformers' LLaVA is the reference.
No real weights of 7B are here; the layout is that which the released code's train.py saves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from llava_parity import our_logits
from PIL import Image
from transformers import CLIPVisionModel

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.interop.weights import State, read_tensors
from mmtune.models.spec import LoraOptions, ModelSpec

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(llava_hf: Write) -> Path:
    return llava_hf("llama", pad=True)


@pytest.fixture(scope="module")
def reference(whole: Path) -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(whole, template="chatml")


def renamed(whole: Path, *, tower: bool) -> State:
    """The tensors under the names of LlavaLlamaForCausalLM."""
    names = {
        "language_model.": "",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    }
    state = {}
    for name, tensor in safetensors.torch.load_file(whole / "model.safetensors").items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        if tower or old != "vision_tower.":
            state[names[old] + name.removeprefix(old)] = tensor
    return state


def write(whole: Path, folder: Path, kind: str = "bin", **changes: Any) -> Path:
    """A folder of the released code, with its tower beside it in `clip/`.

    Args:
        whole: the `llava-hf` folder to take from.
        folder: to write to.
        kind: of the weights: bin, shards, safetensors, tower (a finetuned one inside), or none.
        **changes: to config.json.
    """
    settings = json.loads((whole / "config.json").read_text())
    folder.mkdir()
    config = {
        **settings["text_config"],
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(folder / "clip"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / file, folder / file)
    state = renamed(whole, tower=kind == "tower")
    if kind in ("bin", "tower"):
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        safetensors.torch.save_file(state, folder / "model.safetensors")
    elif kind == "shards":
        save_torch_state_dict(state, folder, max_shard_size="60KB", safe_serialization=False)

    from transformers import CLIPVisionConfig

    tower = CLIPVisionModel(CLIPVisionConfig.from_dict(settings["vision_config"]))
    held = safetensors.torch.load_file(whole / "model.safetensors")
    own = {n.removeprefix("vision_tower."): t for n, t in held.items() if n.startswith("vision_tower.")}
    if kind == "tower":  # what is outside was not finetuned
        own = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    tower.load_state_dict(own)
    tower.save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(size))
    return folder


def same(model: VisionLanguageModel, reference: VisionLanguageModel, photos: list[Image.Image]) -> None:
    ours, theirs = model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    asked = ["<image>\nwhat is it?", "nothing to see"]
    shown = [[photos[0]], []]
    assert model.answer(asked, shown, max_tokens=8) == reference.answer(asked, shown, max_tokens=8)


@pytest.mark.parametrize("kind", ["bin", "shards", "safetensors", "tower"])
def test_a_whole_model_is_read(
    whole: Path, reference: VisionLanguageModel, photos: list[Image.Image], tmp_path: Path, kind: str
) -> None:
    folder = write(whole, tmp_path / "any_name", kind)
    if kind == "shards":
        assert len(list(folder.glob("pytorch_model-*.bin"))) > 2
    same(VisionLanguageModel.from_pretrained(folder, template="chatml"), reference, photos)


def test_what_no_chat_template_says_is_vicunas(whole: Path, tmp_path: Path) -> None:
    assert VisionLanguageModel.from_pretrained(write(whole, tmp_path / "m")).spec.template == "vicuna_v1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_aspect_ratio": None}, {"fit": "crop"}),
        ({"mm_vision_select_layer": -1}, {"blocks": [-1]}),
        ({"mm_vision_select_layer": 2}, {"blocks": [1]}),
        ({"mm_vision_select_feature": "cls_patch"}, {"class_token": True}),
    ],
)
def test_the_config_decides(whole: Path, tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    options = VisionLanguageModel.from_pretrained(write(whole, tmp_path / "m", **changes)).spec.vision
    assert options is not None
    assert {key: getattr(options, key) for key in expected} == expected


def language_alone(whole: Path, folder: Path) -> Path:
    """The language model that adapters and projectors are trained on."""
    from transformers import AutoModelForCausalLM

    from mmtune.models.language import load_language

    folder.mkdir()
    language = load_language(str(whole))
    assert type(language) is type(AutoModelForCausalLM.from_config(language.config))
    language.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / file, folder / file)
    return folder


@pytest.mark.parametrize("names", ["model.mm_projector.", "mm_projector."])
def test_an_aligned_projector_is_read_with_the_language_model_it_names(
    whole: Path, reference: VisionLanguageModel, photos: list[Image.Image], tmp_path: Path, names: str
) -> None:
    base = language_alone(whole, tmp_path / "base")
    folder = write(whole, tmp_path / "aligned", "none", _name_or_path=str(base))
    state = {n.replace("model.mm_projector.", names): t for n, t in renamed(whole, tower=False).items() if "mm_" in n}
    torch.save(state, folder / "mm_projector.bin")
    same(VisionLanguageModel.from_pretrained(folder, template="chatml"), reference, photos)

    shutil.move(base, tmp_path / "moved")
    with pytest.raises(UserError, match="base"):
        VisionLanguageModel.from_pretrained(folder)
    again = VisionLanguageModel.from_pretrained(folder, language=str(tmp_path / "moved"), template="chatml")
    same(again, reference, photos)


def test_commands_name_the_template_and_the_language_model_that_a_folder_does_not(
    whole: Path, reference: VisionLanguageModel, photos: list[Image.Image], tmp_path: Path, capsys: Any
) -> None:
    base = language_alone(whole, tmp_path / "base")
    folder = write(whole, tmp_path / "aligned", "none", _name_or_path="/somebody/elses/llama")
    torch.save({n: t for n, t in renamed(whole, tower=False).items() if "mm_" in n}, folder / "mm_projector.bin")
    named = ["--language", str(base), "--template", "chatml"]
    assert main(["export", str(folder), "--to", "llava-hf", "-o", str(tmp_path / "out"), *named]) == 0
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.spec.template == "chatml"
    same(again, reference, photos)
    assert main(["export", str(folder), "--to", "llava-hf", "-o", str(tmp_path / "none")]) == 2
    assert "/somebody/elses/llama" in capsys.readouterr().err
    assert main(["export", str(whole), "--to", "merged", "-o", str(tmp_path / "none"), *named]) == 2
    assert f"brings its language model; leave out the other one, {base}" in capsys.readouterr().err


def test_a_run_is_read_with_its_language_model_moved(whole: Path, photos: list[Image.Image], tmp_path: Path) -> None:
    base = language_alone(whole, tmp_path / "base")
    spec = ModelSpec(str(base), template="chatml", lora=LoraOptions(r=2))
    model = VisionLanguageModel.assemble(spec).eval()
    model.save_pretrained(tmp_path / "saved")
    shutil.move(base, tmp_path / "moved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved", language=str(tmp_path / "moved"))
    assert torch.equal(our_logits(again, "Hello", []), our_logits(model, "Hello", []))
    with pytest.raises(UserError, match="brings its language model"):
        VisionLanguageModel.from_pretrained(tmp_path / "moved", language="another")
    model.merge_adapters()
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="brings its language model"):
        VisionLanguageModel.from_pretrained(tmp_path / "whole", language=str(tmp_path / "moved"))


def test_a_linear_projector_is_read(whole: Path, tmp_path: Path) -> None:
    base = language_alone(whole, tmp_path / "base")
    folder = write(whole, tmp_path / "aligned", "none", _name_or_path=str(base), mm_projector_type="linear")
    weight, bias = torch.randn(64, 32), torch.randn(64)
    torch.save({"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}, folder / "mm_projector.bin")
    model = VisionLanguageModel.from_pretrained(folder)
    assert model.projector is not None
    assert torch.equal(model.projector.get_submodule("0").weight, weight)
    assert torch.equal(model.projector.get_submodule("0").bias, bias)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_lora_adapters_are_read_with_the_projector_beside_them(
    whole: Path, photos: list[Image.Image], tmp_path: Path, kind: str
) -> None:
    base = language_alone(whole, tmp_path / "base")
    folder = write(whole, tmp_path / "llava-lora", "none")
    trained = VisionLanguageModel.from_pretrained(whole, template="chatml")
    trained.spec.lora = LoraOptions(r=4, alpha=8, dropout=0.1, targets=["q_proj", "v_proj"])
    trained.add_adapters()
    for name, parameter in trained.language.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    trained.eval()
    trained.language.save_pretrained(folder, save_embedding_layers=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    if kind == "bin":
        torch.save(read_tensors(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    state = {f"base_model.model.{n}": t for n, t in renamed(whole, tower=False).items() if "mm_projector" in n}
    torch.save(state, folder / "non_lora_trainables.bin")
    model = VisionLanguageModel.from_pretrained(folder, template="chatml")
    assert model.spec.lora == trained.spec.lora
    same(model, trained, photos)
    model.save_pretrained(tmp_path / "run" / "model")
    same(VisionLanguageModel.from_pretrained(tmp_path / "run"), trained, photos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures: expected one of LlavaLlama.*found LlavaMptFor"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type: expected linear, mlp2x_gelu, found mlp3x_gelu"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature: expected patch, cls_patch, found cls"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer -9: expected a block's output, -3 to -1 or 1 to 3"),
        ({"mm_vision_select_layer": 0}, "mm_vision_select_layer 0: expected a block's output"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio: expected pad, square, crop, found anyres"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: expected False, found True"),
        ({"mm_vision_tower": "no/such-tower"}, "mm_vision_tower: no/such-tower: .*hf download no/such-tower"),
        ({"mm_projector_type": "linear"}, r"expected 0.bias \[64\], 0.weight \[64, 32\], found .*2.weight"),
    ],
)
def test_what_is_not_read_is_said(whole: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write(whole, tmp_path / "m", **changes)
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.from_pretrained(folder)


def test_a_projector_of_another_tower_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = write(whole, tmp_path / "m")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["model.mm_projector.0.weight"] = torch.zeros(64, 48)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"expected .*0.weight \[64, 32\].*found .*0.weight \[64, 48\]"):
        VisionLanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("missing", ["weights", "projector", "tower's weights"])
def test_what_is_missing_is_said(whole: Path, tmp_path: Path, missing: str) -> None:
    if missing == "weights":
        folder = write(whole, tmp_path / "m", "none")
        message = "expected weights, or the name of the language model"
    elif missing == "projector":
        folder = write(whole, tmp_path / "m", "none", _name_or_path=str(language_alone(whole, tmp_path / "base")))
        message = "expected mm_projector.safetensors or mm_projector.bin with the projector"
    else:
        folder = write(whole, tmp_path / "m")
        (folder / "clip" / "model.safetensors").unlink()
        message = "clip: expected the weights of a CLIP vision tower, found none"
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.from_pretrained(folder)
