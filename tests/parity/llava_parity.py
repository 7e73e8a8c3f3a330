"""Ask our model and transformers' the same, as anyone would, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import PromptEncoder

ASKED: list[tuple[str, tuple[int, ...]]] = [
    ("say something", ()),
    ("<image>\nwhat is it?", (0,)),
    ("<image> or <image>, and then <image>?", (0, 3, 1)),
]


def theirs(folder: Path) -> tuple[Any, Any]:
    """The model and the processor as anyone loads them, with no code of ours."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil")


def their_inputs(processor: Any, text: str, photos: Sequence[Image.Image]) -> Any:
    return processor(text=text, images=list(photos) or None, return_tensors="pt")


@torch.inference_mode()
def our_logits(model: VisionLanguageModel, text: str, photos: Sequence[Image.Image]) -> torch.Tensor:
    encoder = PromptEncoder(model)
    embeddings = encoder.embed(encoder.token_ids(text, photos))
    result: torch.Tensor = model.language(inputs_embeds=embeddings[None]).logits[0]
    return result


def same_logits_and_text(
    model: VisionLanguageModel,
    folder: Path,
    photos: list[Image.Image],
    asked: Sequence[tuple[str, tuple[int, ...]]] = ASKED,
) -> None:
    llava, processor = theirs(folder)
    rows = len(model.base_language.get_input_embeddings().weight)
    answers = set()
    for text, seen in asked:
        shown = [photos[number] for number in seen]
        inputs = their_inputs(processor, text, shown)
        with torch.inference_mode():
            expected = llava(**inputs).logits[0]
        torch.testing.assert_close(our_logits(model, text, shown), expected[:, :rows], rtol=1e-4, atol=1e-4)

        content: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split("<image>")):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": piece.strip("\n")}] if piece.strip() else []
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = their_inputs(processor, prompt, shown)
        # where a marker is text to the tokenizer, generate() needs it to look for the marker
        out = llava.generate(**inputs, max_new_tokens=12, do_sample=False, tokenizer=processor.tokenizer)
        said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert model.answer([text], [shown], max_tokens=12) == [said]
        answers.add(said)
    assert len(answers) == len(asked), "what is said must depend on what is asked and seen"
