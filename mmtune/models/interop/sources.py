"""LLaVA models of other tools: recognition by the config alone, and loading of their language models."""

from __future__ import annotations

from typing import Any, Protocol

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mmtune.common.errors import UserError
from mmtune.common.files import locate
from mmtune.models.interop.llava_hf import TransformersLlava
from mmtune.models.interop.llava_original import OriginalLlava
from mmtune.models.interop.weights import State, read_settings
from mmtune.models.pretrained import harmless, model_of_state, special_tokens
from mmtune.models.spec import ModelSpec

_PADDED_TO = 1024  # the largest multiple that vocabularies are padded to


class Source(Protocol):
    """LLaVA of another tool, in a folder or hub repository.

    Attributes:
        reference: the folder or hub id.
        image_token: id of the image token in its config; None if text is cut at `<image>` instead.
    """

    reference: str
    image_token: int | None

    def spec(self, language: str | None) -> ModelSpec:
        """Return the spec of the model, with references to its parts.

        Args:
            language: the language model that an adapter or a projector belongs to, in place of the one it names.

        Raises:
            UserError: a part of it is not supported.
        """

    def language_config(self) -> Any:
        """Return transformers' config of the language model, with the dtype in which it is stored."""

    def language_state(self) -> State:
        """Read the language model's tensors, under the names of the causal language model."""

    def projector_state(self) -> State:
        """Read the projector's tensors, as layers 0 and 2 (0 alone if it is linear)."""

    def adapter_state(self) -> State | None:
        """Read the adapter's tensors under peft's names; None if there is no adapter."""


def open_source(reference: str) -> Source | None:
    """Return the LLaVA of another tool at a reference; None if it is something else or does not exist.

    Raises:
        UserError: it is a vision-language model of a kind that is not supported.
    """
    if locate(reference).is_file():
        return None
    try:
        settings = read_settings(reference, "config.json")
    except UserError:
        return None  # the loader of language models reports the error
    if settings is None:
        return None
    architectures = settings.get("architectures") or []
    if "mm_vision_tower" in settings:
        return OriginalLlava(reference, settings)
    if settings.get("model_type") == "llava" and "vision_config" in settings:
        return TransformersLlava(reference, settings)
    if "vision_config" in settings and "text_config" in settings:
        raise UserError(
            f"{reference}: config.json: expected the architecture LlavaForConditionalGeneration or the released "
            f"LLaVA's (LlavaLlamaForCausalLM), found {', '.join(architectures) or settings.get('model_type')}"
        )
    return None


def load_source_language(source: Source, *, dtype: Any, **options: Any) -> Any:
    """Load the language model of a LLaVA as transformers' causal language model.

    Raises:
        UserError: tensors are missing, or of another shape than the config says.
    """
    import torch

    from mmtune.models.interop.weights import compare

    config = harmless(source.language_config(), source.reference)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{source.reference}: text_config: {config.model_type} is no causal language model")
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    state = {name: tensor for name, tensor in source.language_state().items() if not name.endswith("inv_freq")}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in state:
        del expected["lm_head.weight"]
    compare(state, expected, source.reference)
    language = model_of_state(kind, config, state, dtype=dtype, **options)
    language.generation_config = special_tokens(source.reference)  # which may name more end tokens
    return language


def check_vocabulary(source: Source, tokenizer: Any, rows: int) -> None:
    """Check that the tokenizer belongs to the embedding.

    An embedding may have more rows than tokens: vocabularies are padded, to multiples of up to 1024.

    Args:
        source: the LLaVA that both come from.
        tokenizer: its tokenizer.
        rows: number of rows of the word embedding.

    Raises:
        UserError: the tokenizer is larger or much smaller, or the image token is missing or has another id.
    """
    # some of Llama's tokenizers name a padding token that the embedding has no row for
    ids = [number for token, number in tokenizer.get_vocab().items() if token != tokenizer.pad_token]
    tokens = max(ids, default=-1) + 1
    padded = -(-tokens // _PADDED_TO) * _PADDED_TO
    if not tokens <= rows <= padded:
        kind = "larger" if tokens > rows else "smaller"
        raise UserError(
            f"{source.reference}: the tokenizer is {kind} than the embedding: it has {tokens} tokens, and the "
            f"embedding {rows} rows, where {tokens} to {padded} are expected; copy the tokenizer of the same model"
        )
    if source.image_token is None:
        return
    found = tokenizer.get_vocab().get("<image>")
    if found != source.image_token:
        has = "has no <image>" if found is None else f"gives <image> the id {found}"
        raise UserError(
            f"{source.reference}: config.json expects the image token <image> to have the id {source.image_token}, and "
            f"the tokenizer {has}; copy both from the same model"
        )
