"""Safe calls of transformers' loaders, which read the files of a model and run none of its code.

A model folder can name code in many places: `auto_map`, a tokenizer class, an attention kernel of the hub, a quantizer,
an adapter. Every loader of transformers is called here, with `trust_remote_code=False`, and config entries that name
code are removed or refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    dynamic_module_utils,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from mmtune.common.errors import UserError, brief

# A loader inside transformers that is called without `trust_remote_code` asks on the terminal whether to run a model's
# code, with text that the model controls. With no time to answer, it refuses instead.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_ADAPTER = "adapter_config.json"
_NAMES_CODE = ("auto_map", "_auto_class", "fusion_config")
_QUANTISER = "bitsandbytes"
_COUNTED = ("layer", "block", "expert", "head")  # parts that are created one by one, before any weights are looked up
_MOST = 10_000  # of each; the largest models have some hundreds


def load_config(name: str) -> Any:
    """Read the config of a model, without the entries that name code.

    Args:
        name: folder or hub id.

    Raises:
        UserError: the model needs code of its own, or a quantizer other than bitsandbytes; see `harmless`.
    """
    settings = _settings(name, "config.json")
    if "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING:
        kind = brief(str(settings.get("model_type")))
        raise UserError(
            f"{name}: config.json: auto_map: {kind} needs code of its own, which is not run; give a model of a kind "
            "that transformers knows"
        )
    return harmless(AutoConfig.from_pretrained(name, trust_remote_code=False), name)


def load_causal_model(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a causal language model with its weights.

    Args:
        name: folder or hub id.
        options: of transformers' `from_pretrained`.

    Returns:
        The model; and the names of tensors that are missing, or left over.

    Raises:
        UserError: the model needs code of its own, or its folder also holds an adapter.
    """
    config = load_config(name)
    if find_file(name, _ADAPTER):
        raise UserError(
            f"{name}: holds an adapter beside the language model ({_ADAPTER}), which is not read; merge it into the "
            "model, or take the file away"
        )
    model, found = AutoModelForCausalLM.from_pretrained(
        name,
        config=config,
        trust_remote_code=False,
        generation_config=special_tokens(name),
        output_loading_info=True,
        **options,
    )
    return model, found


def build_causal_model(config: Any, **options: Any) -> Any:
    """Build the causal language model of a config, with initial weights."""
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def model_of_state(kind: Any, config: Any, state: dict[str, torch.Tensor], **options: Any) -> Any:
    """Build a transformers model from tensors by name.

    Args:
        kind: the class of the model.
        config: its config, from which `harmless` has removed the entries that name code.
        state: the tensors.
        options: of transformers' `from_pretrained`.
    """
    return kind.from_pretrained(None, config=config, state_dict=state, trust_remote_code=False, **options)


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Read a GGUF file: the tokenizer, and the causal language model in float32.

    Other files in its folder are ignored: transformers would read an adapter or a tokenizer's settings from there.
    """
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file=file.name, trust_remote_code=False, dtype=torch.float32
        )
    return tokenizer, model


def load_fast_tokenizer(name: str) -> Any:
    """Load the `tokenizer.json` of a folder or hub id."""
    return PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False)


def load_any_tokenizer(name: str) -> Any:
    """Load the tokenizer of a folder or hub id by the class that its settings name.

    Raises:
        UserError: the settings name something other than a tokenizer of transformers.
    """
    for file in ("tokenizer_config.json", "config.json"):
        settings = _settings(name, file)
        named = settings.get("tokenizer_class")
        kind = getattr(transformers, str(named), None)
        needs_own = kind is None and "auto_map" in settings and file == "tokenizer_config.json"
        if needs_own or not (kind is None or (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase))):
            found = brief(str(named))
            raise UserError(f"{name}: {file}: tokenizer_class: expected a tokenizer of transformers, found {found}")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def harmless(config: Any, name: str) -> Any:
    """Remove the entries of a config that name code, and check the others.

    Args:
        config: transformers config, which is changed.
        name: name of the model, for the message.

    Raises:
        UserError: the weights are quantized in a way that needs code of other packages, the dtype is invalid, or
            `check_counts` refuses a number.
    """
    for part in _parts(config):
        # kernels of the hub are code, and a config may name one for attention or for experts
        part._attn_implementation = None
        part._experts_implementation = None
        for key in _NAMES_CODE:
            vars(part).pop(key, None)
        if (quantised := getattr(part, "quantization_config", None)) is not None:
            method = quantised.get("quant_method", _QUANTISER) if isinstance(quantised, dict) else quantised
            if method != _QUANTISER:
                raise UserError(
                    f"{name}: config.json: quantization_config: expected {_QUANTISER}, found {brief(str(method))}, "
                    "which runs code of other packages; give the weights as they were before"
                )
        check_counts(vars(part), f"{name}: config.json")
        if part.dtype is not None and not isinstance(part.dtype, torch.dtype):
            raise UserError(f"{name}: config.json: dtype: expected a type of numbers, such as float32")
    return config


def check_counts(settings: dict[str, Any], where: str) -> None:
    """Check that a config's numbers of layers, experts and the like are plausible, since huge ones fill the memory.

    Raises:
        UserError: a number is too large; the message begins with `where`.
    """
    for key, value in settings.items():
        counts = key.startswith(("n_", "num_")) or key.endswith(("layers", "heads", "blocks", "experts"))
        if counts and any(counted in key for counted in _COUNTED) and isinstance(value, int) and value > _MOST:
            raise UserError(f"{where}: {key} {value:,}: no model has as many; download it again")


def find_file(name: str, file: str) -> str | None:
    """Return the path of a file of a folder or hub id, downloaded if necessary; None if there is no such file."""
    path: str | None = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return path


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _settings(name: str, file: str) -> dict[str, Any]:
    path = find_file(name, file)
    settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return settings if isinstance(settings, dict) else {}


def special_tokens(name: str) -> GenerationConfig:
    """Read the special tokens of a model's generation config, and nothing else.

    The other entries control transformers' `generate`: beams, code of the hub, compilation. Here the caller does.
    """
    settings = _settings(name, "generation_config.json")
    ids = {key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}

    def is_id(value: Any) -> bool:
        return isinstance(value, int) or (isinstance(value, list) and all(isinstance(one, int) for one in value))

    return GenerationConfig(**{key: value for key, value in ids.items() if is_id(value)})
