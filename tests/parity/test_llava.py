"""transformers' own LLaVA with the same weights says the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from mmtune.data.collate import pack
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import IMAGE_TOKEN, encode
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.projector import build_projector
from mmtune.models.spec import ModelSpec, VisionOptions
from mmtune.models.vision import TowerShape, VisionTower
from mmtune.training.objectives.token_loss import supervised_loss


class ClipTrunk(nn.Module):
    """transformers' CLIP behind the interface that open_clip's towers have."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward_intermediates(
        self, pixels: torch.Tensor, indices: list[int], **_: Any
    ) -> dict[str, list[torch.Tensor]]:
        states = self.clip(pixels, output_hidden_states=True).hidden_states[1:]
        maps = [states[i][:, 1:].transpose(1, 2).unflatten(2, (2, 2)) for i in indices]
        return {"image_intermediates": maps}


@pytest.fixture
def pair(llama: Path) -> tuple[VisionLanguageModel, Any]:
    """The same weights as mmtune's model and as transformers' LLaVA."""
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    language = LlamaForCausalLM.from_pretrained(llama, attn_implementation="sdpa")
    seen = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = LlavaConfig(
        vision_config=seen,
        text_config=language.config,
        image_token_index=258 + 1,  # no token of the vocabulary: it is replaced before it is looked up
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(config).eval()
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    projector = build_projector("mlp2x_gelu", 32, 64, scale=0.2, seed=1)
    llava.model.multi_modal_projector.linear_1.load_state_dict(projector[0].state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(projector[2].state_dict())
    options = VisionOptions("timm:test_vit", "random")
    tower = VisionTower(
        ClipTrunk(llava.model.vision_tower), options, TowerShape(4, 32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    )
    spec = ModelSpec(str(llama), options, template="chatml")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    return VisionLanguageModel(spec, language, tokenizer, tower, projector).eval(), llava


def examples_of(model: VisionLanguageModel, photos: list[Image.Image]) -> Any:
    from mmtune.data.encoding import ModelInputs

    assert model.tower is not None
    inputs = ModelInputs(model.tokenizer, model.template, 4, model.tower.preprocess)
    made = []
    for number, seen in enumerate([(0, 1), (), (2,), ()]):
        files = []
        for one in seen:
            stream = io.BytesIO()
            photos[one].save(stream, "PNG")
            files.append(stream.getvalue())
        turns = (
            Turn("user", "<image>" * len(seen) + f"question {number}" * (number + 1)),
            Turn("assistant", "an answer " * (4 - number)),
        )
        made.append(encode(Conversation(turns, tuple(files), "rows", number + 1), inputs, 512))
    return made, inputs


def test_a_pack_has_the_loss_and_gradients_of_llavas_padded_batch(
    pair: tuple[VisionLanguageModel, Any], photos: list[Image.Image]
) -> None:
    model, llava = pair
    examples, inputs = examples_of(model, photos)
    batch = pack(examples, inputs)
    model.set_stage("tune")
    loss = supervised_loss(model(batch), batch.targets, model.output_layer, chunk=16)
    loss.backward()

    longest = max(map(len, examples))
    ids, mask = torch.zeros(2, len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(examples):
        tokens = torch.from_numpy(one.input_ids).long()
        ids[row, : len(one)] = tokens.masked_fill(tokens == IMAGE_TOKEN, 259)
        mask[row, : len(one)] = 1
        labels[row, : len(one)][torch.from_numpy(one.supervised)] = tokens[torch.from_numpy(one.supervised)]
    # LLaVA looks its placeholder up before it replaces it, so the table needs a row for it; ours stays as it is
    llava.resize_token_embeddings(260)
    logits = llava(input_ids=ids, pixel_values=batch.pixels, attention_mask=mask).logits[..., :259]
    theirs = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    theirs.backward()

    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    assert model.projector is not None
    ours = {
        "linear_1": model.projector.get_submodule("0"),
        "linear_2": model.projector.get_submodule("2"),
    }
    for name, layer in ours.items():
        reference = llava.model.multi_modal_projector.get_submodule(name)
        torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-5)
        assert float(layer.weight.grad.abs().max()) > 1e-4
    language = dict(model.language.model.named_parameters())
    for name, parameter in llava.model.language_model.named_parameters():
        if "embed_tokens" not in name:
            torch.testing.assert_close(language[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_answers_are_llavas(pair: tuple[VisionLanguageModel, Any], photos: list[Image.Image]) -> None:
    model, llava = pair
    llava.resize_token_embeddings(260)
    llava.lm_head.weight.data[259] = 0
    assert model.tower is not None
    text = "<|im_start|>user\n<image>\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
    for photo in photos[:3]:
        before, after = (model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in text.split("<image>"))
        ids = torch.tensor([[*before, *[259] * 4, *after]])
        out = llava.generate(
            input_ids=ids,
            pixel_values=model.tower.preprocess(photo)[None],
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=258,
            pad_token_id=258,
        )
        expected = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert model.answer(["<image>what is it?"], [[photo]], max_tokens=12) == [expected]
