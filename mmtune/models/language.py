"""Language models: loading from the hub, a folder or a GGUF file, with adapters or without."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from mmtune.common.disk import locked
from mmtune.common.errors import UserError, reason
from mmtune.common.files import atomic_path, cache_dir, locate, sha256_file
from mmtune.common.hub import go_offline_if_unreachable
from mmtune.data.rendering.sentencepiece import build_tokenizer, check_settings
from mmtune.models import pretrained
from mmtune.models.adapters import adapted_experts, adapted_layers, uncalled_layers
from mmtune.models.gguf_header import check_gguf
from mmtune.models.interop.chat_templates import chat_template_of
from mmtune.models.interop.llava_hf import TransformersLlava
from mmtune.models.interop.sources import load_source_language, open_source
from mmtune.models.load_errors import explaining
from mmtune.models.spec import LoraOptions, Quantisation
from mmtune.models.vocabulary import check_tokenizer, vocabulary_size
from mmtune.models.window import window_of

_IN_BLOCK = re.compile(r"\blayers\.\d+\.")


def load_config(reference: str) -> Any:
    """Read the transformers config of a language model.

    Raises:
        UserError: it cannot be found, or its architecture is not known.
    """
    with explaining(partial(_not_loadable, reference)):
        if (source := open_source(reference)) is not None:
            return pretrained.harmless(source.language_config(), reference)
        return pretrained.load_config(_transformers_name(reference))


def load_language(
    reference: str,
    *,
    dtype: torch.dtype = torch.float32,
    quantise: Quantisation | None = None,
    device: torch.device | None = None,
) -> Any:
    """Load a causal language model with its weights.

    Args:
        reference: hub id, folder, `.gguf` file or `package:NAME/file`; of another tool's LLaVA, its language model.
        dtype: dtype of the weights; with quantized weights, dtype of the computation.
        quantise: keep the linear layers of the blocks in 4 or 8 bits. NF4 with double quantization is that of QLoRA
            (arXiv 2305.14314, section 3), 8 bits that of LLM.int8() (arXiv 2208.07339).
        device: device on which weights are quantized, and stay; by default torch's default device.

    Raises:
        UserError: the weights or bitsandbytes are missing, or the model cannot use quantized weights.
    """
    options: dict[str, Any] = {}
    if quantise is not None:
        options["quantization_config"] = _quantisation(quantise, dtype, _kept_whole(reference))
        # by default transformers would take the current GPU, in each process the first
        options["device_map"] = {"": device or torch.get_default_device()}
    with explaining(partial(_not_loadable, reference)):
        if (source := open_source(reference)) is not None:
            language = load_source_language(source, dtype=dtype, **options)
        else:
            language, found = pretrained.load_causal_model(_transformers_name(reference), dtype=dtype, **options)
            _check_complete(found)
    if quantise is not None:
        if hasattr(decoder(language), "_rescale_layers"):  # RWKV's, in place
            raise UserError(
                f"--model.quantise {quantise}: {reference}: {language.config.model_type} rescales its weights when it "
                "answers, which quantised ones do not take; leave it out"
            )
        _keep_layout(language)
    return language


def _keep_layout(language: Any) -> None:
    """Keep the layout of 4-bit weights when a CPU with AVX-512 for bfloat16 computes the model.

    bitsandbytes would reorder the weights for it, and afterwards no gradient flows through them.
    """
    for module in language.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_complete(found: dict[str, Any]) -> None:
    """Raise a ValueError if weights are missing, or if tensors of the blocks are left over.

    transformers would continue, with random weights or without a part of the blocks.
    """
    left_over = [name for name in found["unexpected_keys"] if _IN_BLOCK.search(name) and not name.endswith("inv_freq")]
    for names, problem in ((found["missing_keys"], "the weights lack"), (left_over, "the config has no place for")):
        if names:
            raise ValueError(f"{problem} {len(names)} tensors that the other has, such as {min(names)}")


def empty_language(reference: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """Build a language model without weights, on the meta device, for counting and planning."""
    with explaining(partial(_not_loadable, reference)), torch.device("meta"):
        return pretrained.build_causal_model(load_config(reference), dtype=dtype)


def check_language(reference: str, lora: LoraOptions | None) -> None:
    """Check, before any long computation, that the weights exist and that the adapters match layers of the model.

    Raises:
        UserError: there are no weights, or a target matches no linear layer.
    """
    name = _transformers_name(reference)
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    with explaining(partial(_not_loadable, reference)):
        if not any(pretrained.find_file(name, file) for file in names):
            raise OSError(f"there is none of {', '.join(names)}")
    if lora is not None:
        language = empty_language(reference)
        adapted_layers(language, lora)
        adapted_experts(language, lora)


def check_context(reference: str, max_length: int) -> None:
    """Check that rows of `max_length` tokens fit into the window of the model.

    Raises:
        UserError: they are longer.
    """
    most = window_of(load_config(reference))
    if most is not None and max_length > most:
        raise UserError(f"--data.max_length {max_length}: {reference} reads {most} tokens; give at most that")


def load_tokenizer(reference: str) -> Any:
    """Load the fast tokenizer of a language model.

    A `tokenizer.json` is used unchanged. (transformers' LlamaTokenizer class would rebuild its pipeline, and would then
    give other ids for runs of spaces.) If there is only a sentencepiece `tokenizer.model`, see
    `mmtune.data.rendering.sentencepiece`.

    Raises:
        UserError: there is no tokenizer that can be read.
        VocabularyError: it gives ids for which the model's embedding has no row.
    """
    with explaining(partial(_not_loadable, reference)):
        tokenizer = _read_tokenizer(reference)
        tokenizer("a")  # errors in its settings show only in use
        check_tokenizer(tokenizer, embedding_rows(reference), reference)
        return tokenizer


def embedding_rows(reference: str) -> int | None:
    """Return the number of rows of the word embedding; None if unknown, as without a model (`mmtune data`)."""
    try:
        return vocabulary_size(load_config(reference))
    except UserError:
        return None


def _read_tokenizer(reference: str) -> Any:
    name = _transformers_name(reference)
    if pretrained.find_file(name, "tokenizer.json"):
        tokenizer = pretrained.load_fast_tokenizer(name)
        if isinstance(open_source(reference), TransformersLlava):  # the processor has the chat template
            tokenizer.chat_template = chat_template_of(reference)
        return tokenizer
    if model := pretrained.find_file(name, "tokenizer.model"):
        config = pretrained.find_file(name, "tokenizer_config.json")
        settings = json.loads(Path(config).read_text()) if config else {}
        # a config without the flag is older than the flag
        tokenizer = build_tokenizer(Path(model), legacy=settings.get("legacy", True) is not False, name=reference)
        added = pretrained.find_file(name, "added_tokens.json")
        check_settings(tokenizer, settings, json.loads(Path(added).read_text()) if added else {}, reference)
        tokenizer.chat_template = settings.get("chat_template")
        return tokenizer
    return pretrained.load_any_tokenizer(name)


def _kept_whole(reference: str) -> list[str] | None:
    """Return the layers to leave unquantized; None leaves the choice to transformers.

    They are the layers whose weights are read without a call, and those that transformers itself leaves out.
    """
    language = empty_language(reference)
    uncalled = uncalled_layers(language)
    return sorted({*uncalled, *get_keys_to_not_convert(language)}) if uncalled else None


def _quantisation(kind: Quantisation, dtype: torch.dtype, kept: list[str] | None) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--model.quantise {kind}: needs bitsandbytes; pip install bitsandbytes")
    # it warns at every layer and step that inputs are rounded to float16, which is how LLM.int8() works
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def decoder(language: Any) -> Any:
    """Return a causal language model without its output layer."""
    inside = language.base_model
    return language.model if inside is language else inside  # Llama 4's code gives another prefix


def decoder_blocks(language: Any) -> nn.ModuleList:
    """Return the blocks of a causal language model, under any name that its code gives them."""
    lists = [m for m in decoder(language).modules() if isinstance(m, nn.ModuleList)]
    count = language.config.get_text_config(decoder=True).num_hidden_layers
    return next(blocks for blocks in lists if len(blocks) == count)


def recompute_activations(language: Any) -> None:
    """Enable gradient checkpointing: the backward pass recomputes the activations of a language model's blocks."""
    new = "activation_checkpointing_enable"  # gradient_checkpointing_enable is its name in older transformers
    enable = getattr(language, new if hasattr(language, new) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def _transformers_name(reference: str) -> str:
    """Return a name that transformers can load: a folder or a hub id. A GGUF file is converted once and cached."""
    path = locate(reference)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{reference}: is a file, but not a .gguf file; give a folder, a hub id or a .gguf file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{reference}: holds neither a run's model (model/mmtune.json) nor a language model (config.json); "
                "name the folder of a finished run, of a saved model or of a language model"
            )
        return str(path)
    if path.is_absolute() or reference.startswith(".") or reference.count("/") > 1 or path.suffix == ".gguf":
        raise UserError(f"{reference}: no such file or folder")
    go_offline_if_unreachable()
    return reference


def _converted(gguf: Path) -> Path:
    """Return the folder of a converted GGUF file: float32 safetensors, which load in a second instead of a minute."""
    folder = cache_dir() / "gguf" / sha256_file(gguf)[:16]
    if (folder / "config.json").is_file():
        return folder
    try:
        # a separate random state: a conversion must not change the random numbers that training draws
        with locked(folder.with_name(f"{folder.name}.lock")), torch.random.fork_rng(devices=[]):
            if not (folder / "config.json").is_file():  # another process has done it meanwhile
                _convert(gguf, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: what {gguf.name} is converted to cannot be kept: {error.strerror}; free some space there, or "
            "name another folder with MMTUNE_CACHE"
        ) from None
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    print(f"Converting {gguf.name} once, to {folder} ...", file=sys.stderr, flush=True)
    check_gguf(gguf)
    with explaining(lambda error: UserError(f"{gguf}: not a GGUF file that transformers can read: {reason(error)}")):
        tokenizer, quantised = pretrained.load_gguf(gguf)
    config = AutoConfig.for_model(quantised.config.model_type)
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(key, None)
    model = pretrained.build_causal_model(type(config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _not_loadable(reference: str, error: Exception) -> UserError:
    return UserError(
        f"{reference}: cannot load the language model or its tokenizer; if it is a hub id, check it, your network and "
        f"your access (`hf download {reference}` fetches it), otherwise give a folder or .gguf file "
        f"({reason(error)})"
    )
