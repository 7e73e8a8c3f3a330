"""Export of a model to other tools: transformers' LLaVA, a peft adapter, or our own layout with merged adapters."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import save_torch_state_dict
from transformers import GenerationConfig, LlavaConfig

from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path, write_json
from mmtune.models import saving
from mmtune.models.interop import clip
from mmtune.models.interop.chat_templates import jinja_template
from mmtune.models.interop.image_processor import processor_settings
from mmtune.models.interop.llava_hf import language_fault
from mmtune.models.interop.vocabulary import with_image_token, with_rows
from mmtune.models.interop.weights import State
from mmtune.models.language import load_config
from mmtune.models.vlm import TunableModel

Format = Literal["llava-hf", "peft", "merged"]
FORMATS: tuple[Format, ...] = get_args(Format)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_for_export(
    reference: str,
    to: Format,
    *,
    language: str | None = None,
    template: str | None = None,
    template_date: str | None = None,
) -> TunableModel:
    """Load a model for export in float32, so that merging adapters rounds only once.

    Adapters that were trained on weights of 4 or 8 bits are merged with the weights before quantization.

    Args:
        reference: the model.
        to: export format.
        language: see `VisionLanguageModel.from_pretrained`.
        template: see `VisionLanguageModel.from_pretrained`.
        template_date: see `VisionLanguageModel.from_pretrained`.

    Raises:
        UserError: see `VisionLanguageModel.from_pretrained`; or the format cannot hold the model.
    """
    spec = saving.read_spec(reference, language=language, template=template, template_date=template_date)
    spec = dataclasses.replace(spec, quantise=None)
    check(TunableModel.assemble(spec, meta=True), to)  # before gigabytes are read
    model = TunableModel.assemble(spec)
    saving.load_trained(model, reference)
    return model.eval()


def export(
    model: TunableModel,
    to: Format,
    folder: Path,
    *,
    dtype: Dtype = "auto",
    max_shard_size: str = "5GB",
    card: str | None = None,
) -> None:
    """Write a model to a folder, completely or not at all.

    Except for `peft`, the adapters are merged into the weights of `model` itself.

    Args:
        model: model to write.
        to: `llava-hf`: LlavaForConditionalGeneration with its processor, for transformers and what builds on it.
            `peft`: the adapter in peft's layout, and the projector. `merged`: our own layout, adapters merged.
        folder: output folder, which is replaced.
        dtype: dtype of the written language model, and in `llava-hf` of all weights; `auto`: that of the base's files.
        max_shard_size: maximum size of a file of weights, such as 5GB.
        card: text of the model card, README.md.

    Raises:
        UserError: the format cannot hold the model; the message names the formats that can.
    """
    writers: dict[Format, Callable[[TunableModel, Path, torch.dtype, str], None]] = {
        "llava-hf": _write_llava_hf,
        "peft": _write_peft,
        "merged": _write_merged,
    }
    check(model, to)
    stored = stored_dtype(model) if dtype == "auto" else getattr(torch, dtype)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        writers[to](model, temporary, stored, max_shard_size)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def check(model: TunableModel, to: Format) -> None:
    """Check that a format can hold a model.

    Raises:
        UserError: it cannot; the message gives the reason and the formats that can.
    """
    if to == "peft" and model.spec.lora is None:
        raise UserError("--to peft: the model has no adapters; use --to llava-hf or --to merged")
    if to != "llava-hf":
        return
    others = "--to merged or --to peft" if model.spec.lora else "--to merged"
    if model.tower is None:
        raise UserError(f"--to llava-hf: the model has no vision tower; use {others}")
    language = model.base_language
    if fault := language_fault(language.config, language.state_dict(), model.spec.language):
        raise UserError(f"--to llava-hf: {model.spec.language}: {fault}; use {others}")
    options = model.tower.options
    try:
        if options.grid is not None:
            raise UserError(f"features are pooled to a grid ({options.grid}), which transformers' LLaVA does not do")
        if options.standardise:
            raise UserError("features are standardised, which transformers' LLaVA does not do")
        clip.describe_trunk(model.tower.trunk)
    except UserError as error:
        raise UserError(f"--to llava-hf: {options.tower}: {error}; use {others}") from None


def stored_dtype(model: TunableModel) -> torch.dtype:
    """Return the dtype in which the language model is stored, by its config; float32 if the config has none."""
    dtype = load_config(model.spec.language).dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _write_llava_hf(model: TunableModel, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    assert model.tower is not None
    model.merge_adapters()
    tokenizer, image_token = with_image_token(model.tokenizer)
    language = _language_state(model, image_token)
    vision = clip.describe_trunk(model.tower.trunk)
    tower = clip.to_transformers(model.tower.trunk.state_dict())
    state = {
        **{f"language_model.{name}": tensor for name, tensor in language.items()},
        **{f"vision_tower.vision_model.{name}": tensor for name, tensor in tower.items()},
        **{f"multi_modal_projector.{name}": tensor for name, tensor in _projector_state(model).items()},
    }
    _write_weights(state, folder, dtype, max_shard_size)

    text = _text_config(model, dtype)
    text.vocab_size = len(language["model.embed_tokens.weight"])
    # open_clip returns blocks from the first to the last, in whatever order they are requested
    blocks = sorted(set(model.tower.options.blocks), key=lambda block: block % vision.num_hidden_layers)
    layers = [clip.layer_of_block(block) for block in blocks]
    strategy = "full" if model.tower.options.class_token else "default"
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=model.tower.shape.num_tokens,
        projector_hidden_act="gelu" if model.spec.projector == "mlp2x_gelu" else "linear",
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layers[0] if len(layers) == 1 else layers,
        tie_word_embeddings=text.tie_word_embeddings,
        architectures=["LlavaForConditionalGeneration"],
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    config.save_pretrained(folder)
    _write_generation(model, tokenizer, folder)
    _write_processor(model, tokenizer, folder, vision.patch_size, strategy)


def _write_processor(model: TunableModel, tokenizer: Any, folder: Path, patch_size: int, strategy: str) -> None:
    """Write the files that transformers' AutoProcessor reads, in version 4 too."""
    assert model.tower is not None
    tower, shape = model.tower, model.tower.shape
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    settings = processor_settings(tower.options.fit, shape.size, shape.mean, shape.std)
    write_json(folder / "preprocessor_config.json", settings)
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,  # CLIP's class token, which the strategy takes off again or keeps
            "patch_size": patch_size,
            "vision_feature_select_strategy": strategy,
        },
    )
    template = jinja_template(model.spec.template, model.tokenizer, model.spec.template_date)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_merged(model: TunableModel, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    model.merge_adapters()
    model.spec.language_trained = True
    saving.write_parts(model, folder)
    inside = folder / saving.LANGUAGE_FOLDER
    inside.mkdir()
    _write_weights(_language_state(model), inside, dtype, max_shard_size)
    _text_config(model, dtype).save_pretrained(inside)
    _write_generation(model, model.tokenizer, inside)
    _speaking(model).save_pretrained(inside)


def _write_peft(model: TunableModel, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """Write the files of a saved model, with the adapter where peft looks for it.

    The trained weights are small and keep their dtype.
    """
    saving.write_parts(model, folder)
    saving.write_adapter(model, folder)
    _write_generation(model, model.tokenizer, folder)
    _speaking(model).save_pretrained(folder)


def _speaking(model: TunableModel) -> Any:
    """Return the tokenizer with the chat template of the model, which may differ from that of its base."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = jinja_template(model.spec.template, model.tokenizer, model.spec.template_date)
    return tokenizer


def _language_state(model: TunableModel, image_token: int = -1) -> State:
    """Return the language model's tensors by name: tied ones once, the vocabulary with a row for the image token."""
    state: State = dict(model.language.state_dict())
    if model.language.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = with_rows(state[name], image_token)
    return state


def _projector_state(model: TunableModel) -> State:
    """Return the projector's tensors under transformers' names.

    transformers' projector has two layers; for a linear projector, the second layer is the identity.
    """
    assert model.projector is not None
    state = model.projector.state_dict()
    if model.spec.projector == "linear":
        hidden = len(state["0.weight"])
        state = {**state, "2.weight": torch.eye(hidden), "2.bias": torch.zeros(hidden)}
    return {f"linear_{1 if name[0] == '0' else 2}.{name[2:]}": tensor for name, tensor in state.items()}


def _text_config(model: TunableModel, dtype: torch.dtype) -> Any:
    """Return a copy of the language model's config with the given dtype and without the local path."""
    config = copy.deepcopy(model.language.config)
    config.dtype = dtype
    config._name_or_path = ""
    config.architectures = [type(model.language).__name__]
    return config


def _write_weights(state: State, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    # a copy of each tensor: a slice of a matrix would keep the memory of the whole matrix
    own = {name: tensor.detach().to(dtype).clone().contiguous() for name, tensor in state.items()}
    save_torch_state_dict(own, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def _write_generation(model: TunableModel, tokenizer: Any, folder: Path) -> None:
    """Write a generation config for greedy answers with our end tokens, whatever the base's config sets.

    An end-of-turn marker that is text to the tokenizer becomes a stop string, for which `generate` needs the tokenizer
    as an argument.
    """
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=model.end_ids() or None,
        stop_strings=list(model.end_texts()) or None,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    ).save_pretrained(folder)
