"""transformers' LLaVA folders, read and written: the same logits, the same text, the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llava_builders import LANGUAGES
from llava_parity import ASKED, same_logits_and_text
from PIL import Image

from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.export import export, load_for_export
from mmtune.models.interop.weights import State, Weights

Write = Callable[..., Path]


def tensors(folder: Path) -> State:
    """By the names of transformers' older folders, whichever the folder has."""
    weights = Weights.of(str(folder))
    assert weights is not None
    return {n.replace("vision_tower.vision_model.", "vision_tower."): t for n, t in weights.read(weights.files).items()}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


# photos before the text of a turn and no system prompt, as the llava-hf 1.5 models have it
LLAVA_HF = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_the_folders_own_chat_template_is_spoken(llava_hf: Write, photos: list[Image.Image], tmp_path: Path) -> None:
    folder = llava_hf("llama", template=LLAVA_HF)
    model = VisionLanguageModel.from_pretrained(folder)
    assert model.spec.template == "tokenizer"
    said = [Turn("user", "<image>\nwhat is it?"), Turn("assistant", "a cat"), Turn("user", "sure?")]
    assert model.template.prompt(said) == "USER: <image>\nwhat is it? ASSISTANT: a cat USER: sure? ASSISTANT:"
    one_photo_or_none = ASKED[:2]  # of several, this template moves them all to the front
    same_logits_and_text(model, folder, photos, one_photo_or_none)
    export(load_for_export(str(folder), "llava-hf"), "llava-hf", tmp_path / "out")
    same_logits_and_text(model, tmp_path / "out", photos, one_photo_or_none)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_folder_of_transformers_is_read_and_written_again_bit_for_bit(
    llava_hf: Write, photos: list[Image.Image], tmp_path: Path, language: str
) -> None:
    folder = llava_hf(language, template=CHATML)
    model = VisionLanguageModel.from_pretrained(folder)
    same_logits_and_text(model, folder, photos)

    export(load_for_export(str(folder), "llava-hf"), "llava-hf", tmp_path / "out")
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    same_logits_and_text(again, tmp_path / "out", photos)
    ours, read_back = model.state_dict(), again.state_dict()
    assert ours.keys() == read_back.keys()
    assert all(torch.equal(ours[name], read_back[name]) for name in ours)


def test_a_folder_that_is_changed_in_its_place_is_read_again(llava_hf: Write) -> None:
    folder = llava_hf("llama")
    before = VisionLanguageModel.from_pretrained(folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(settings))
    after = VisionLanguageModel.from_pretrained(folder)
    assert after.tower is not None
    assert after.tower.shape.mean == (0.1, 0.2, 0.3)
    assert after.fingerprint != before.fingerprint
