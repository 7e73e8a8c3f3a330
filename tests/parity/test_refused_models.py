"""Models that are damaged, half there, or not what they say: refused with what was expected and what was found."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedTokenizerFast

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(llava_hf: Callable[..., Path]) -> Path:
    return llava_hf("llama")


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def config(**changes: Any) -> Damage:
    """Change config.json; `text_config__vocab_size` is a key inside another."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            part = settings
            for name in outer:
                part = part[name]
            part[last] = value
        (folder / "config.json").write_text(json.dumps(settings))

    return change


def photos(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        file = folder / "processor_config.json"
        settings = json.loads(file.read_text())
        settings["image_processor"].update(changes)
        file.write_text(json.dumps(settings))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def apply(folder: Path) -> None:
        state = safetensors.torch.load_file(folder / "model.safetensors")
        change(state)
        safetensors.torch.save_file(state, folder / "model.safetensors")

    return apply


def tokenizer(change: Callable[[Any], Any]) -> Damage:
    def apply(folder: Path) -> None:
        own = PreTrainedTokenizerFast.from_pretrained(folder)
        (change(own) or own).save_pretrained(folder)

    return apply


def without_image_token(own: Any) -> Any:
    settings = json.loads(own.backend_tokenizer.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "<image>"]
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(settings)), eos_token="<|im_end|>")


def in_shards(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(state, folder, max_shard_size="60KB")


def missing_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / sorted(folder.glob("model-*.safetensors"))[1].name).unlink()


def half_downloaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")


def cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def other_index(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        in_shards(folder)
        index = folder / "model.safetensors.index.json"
        settings = json.loads(index.read_text())
        settings["weight_map"].update(changes)
        index.write_text(json.dumps(settings))

    return change


def code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"language_model.lm_head.weight": Code(folder / "was run")}, folder / "pytorch_model.bin")


def old_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code(folder / "was run")))


def no_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")


HEAD, FIRST = "language_model.lm_head.weight", "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(model_type="llava_next"), "expected the architecture LlavaForConditionalGeneration"),
        (config(text_config__model_type="no_such_model"), "not a LLaVA that transformers knows.*no_such_model"),
        (config(vision_config__model_type="siglip_vision_model"), "expected a CLIP vision tower.*siglip_vision"),
        (config(vision_config__hidden_act="relu"), "hidden_act: expected quick_gelu or gelu, found relu"),
        (config(projector_hidden_act="relu"), "projector_hidden_act: expected gelu or linear, found relu"),
        (config(projector_hidden_act="linear"), "expected the second layer to be the identity"),
        (config(vision_feature_layer=7), "vision_feature_layer 7: expected a block's output, -3 to -1 or 1 to 3"),
        (config(vision_feature_layer=[-1, -2]), "expected layers from the first to the last"),
        (config(vision_feature_select_strategy="some"), "not a LLaVA that transformers knows"),
        (config(text_config__vocab_size=352), r"is \[320, 64\], and its config expects \[352, 64\]"),
        (config(text_config__num_hidden_layers=3), r"\d+ tensors are missing"),
        (config(text_config__num_hidden_layers=1), r"\d+ are not expected \(model.layers.1"),
        (config(vision_config__hidden_size=48), r"is \[.*\], and its config expects"),
        (config(image_token_index=300), "to have the id 300, and the tokenizer gives <image> the id 259"),
        (tokenizer(without_image_token), "to have the id 259, and the tokenizer has no <image>"),
        (
            tokenizer(lambda own: own.add_tokens([f"new{n}" for n in range(100)]) and None),
            "larger than the embedding: it has 360 tokens, and the embedding 320 rows, none for 'new60'",
        ),
        (
            lambda folder: [
                config(text_config__vocab_size=1100)(folder),
                weights(
                    lambda state: state.update(
                        {n: torch.zeros(1100, 64) for n in (HEAD, "language_model.model.embed_tokens.weight")}
                    )
                )(folder),
            ],
            "smaller than the embedding: it has 260 tokens, and the embedding 1100 rows, where 260 to 1024",
        ),
        (
            weights(lambda state: state.update({FIRST: torch.zeros(64, 40)})),
            r"expected .*\[64, 32\].*found .*\[64, 40\]",
        ),
        (weights(lambda state: state.pop(HEAD)), "1 tensors are missing"),
        (weights(lambda state: state.pop(FIRST)), "the projector does not fit"),
        (missing_shard, r"half downloaded: model.safetensors.index.json names \d+ files, and 1 of them \(model-00002"),
        (half_downloaded, "half downloaded: .*found model.safetensors.incomplete"),
        (cut_off, "model.safetensors: damaged"),
        (other_index(**{HEAD: "../model.safetensors"}), "which is not a file beside it"),
        (other_index(**{HEAD: "model-00001-of-00009.safetensors"}), "half downloaded"),
        (other_index(**{"language_model.model.norm.other": "INDEXED"}), "half downloaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "found no"),
        (code, "pytorch_model.bin: expected tensors, found a pickle with code in it, which is not run"),
        (old_code, "pytorch_model.bin: expected tensors, found a pickle with code in it, which is not run"),
        (no_tensors, "pytorch_model.bin: expected tensors by name, found dict with other things"),
        (photos(size={"shortest_edge": 48}), "expected photos of 32 pixels for the tower"),
        (photos(do_center_crop=False), "expected photos to become square"),
        (photos(resample=2), "resample: expected 3, found 2"),
        (photos(rescale_factor=0.5), "rescale_factor: expected 1/255, found 0.5"),
    ],
)
def test_it_is_refused(
    sound: Path, tmp_path: Path, damage: Damage, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.from_pretrained(folder)
    assert not list(tmp_path.rglob("was run"))


def test_the_command_line_says_it_in_one_line(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sound, tmp_path / "model")
    missing_shard(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--to", "merged", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mmtune: error: ")
    assert "half downloaded" in said
    assert not (tmp_path / "out").exists()


def test_an_older_format_of_bin_files_is_read(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "model")
    state = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ours, theirs = (VisionLanguageModel.from_pretrained(p).state_dict() for p in (tmp_path / "model", sound))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(model_type="no_such_model"), "no_such_model"),
        (code, "cannot load the language model"),
        (cut_off, "cannot load the language model"),
        (missing_shard, "cannot load the language model"),
    ],
)
def test_a_language_model_is_refused_too(llama: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.from_pretrained(folder, template="chatml")
    assert not list(tmp_path.rglob("was run"))
