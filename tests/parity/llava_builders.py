"""LLaVAs of transformers with random weights, of the true architectures, two blocks small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # far from uniform, so that what is said depends on what is seen
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
# what each architecture has of its own; "shared" heads are grouped-query attention
LANGUAGES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "qwen2-tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-untied": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "granite": {"num_key_value_heads": 2},
}


def write_llava(
    folder: Path,
    tokenizer_of: Path,
    language: str = "llama",
    *,
    tower: dict[str, Any] | None = None,
    words: dict[str, Any] | None = None,
    pad: bool = False,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """Write a `llava-hf` folder.

    Args:
        folder: where to.
        tokenizer_of: the folder of a tokenizer; `<image>` is added to it.
        language: of `LANGUAGES`.
        tower: what differs in the tower's config.
        words: what differs in the language model's config.
        pad: pad photos to squares instead of cutting their centre out.
        template: the processor's chat template.
        dtype: of the weights.
        **options: of LlavaConfig.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_of)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**{**sizes, "image_size": 32, "patch_size": 16, **(tower or {})})
    text = AutoConfig.for_model(language.partition("-")[0], **SMALL, **LANGUAGES[language], **(words or {}))
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ("vision_tower" in name and parameter.ndim > 1):
                torch.nn.init.normal_(parameter, std=0.2)
            elif "multi_modal_projector" in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.to(dtype).save_pretrained(folder)
    kind = LlavaImageProcessor if pad else CLIPImageProcessor
    square = {"height": 32, "width": 32}
    photos = kind(size={"shortest_edge": 32}, crop_size=square, **({"do_pad": True} if pad else {}))
    strategy = config.vision_feature_select_strategy
    processor = LlavaProcessor(photos, tokenizer, 16, strategy, template, num_additional_image_tokens=1)
    processor.save_pretrained(folder)
    return folder
