"""transformers' LLaVA (LlavaForConditionalGeneration), the format of the published `llava-hf` models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import LlavaConfig

from mmtune.common.errors import UserError
from mmtune.models.fitness.check import architecture, fitness_of
from mmtune.models.interop.chat_templates import template_of
from mmtune.models.interop.clip import block_of_layer, read_vision_config
from mmtune.models.interop.image_processor import read_processor
from mmtune.models.interop.weights import State, Weights
from mmtune.models.spec import ModelSpec, ProjectorKind, VisionOptions

# published folders, and transformers' own module names since 4.52
_LANGUAGE = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)
_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
_SELECTED = {"default": False, "full": True}


def language_fault(config: Any, names: Iterable[str], reference: str) -> str:
    """Return why transformers' LLaVA computes other logits than its language model alone; "" if they are the same.

    It uses the body of the model alone, and adds an output layer without bias.

    Args:
        config: config of the language model.
        names: names of its weights in the causal language model.
        reference: name of the model in a message.
    """
    if not fitness_of(config, reference).plain_head:
        return f"{architecture(config)} changes its logits behind the output layer, which transformers' LLaVA does not"
    if other := next((n for n in names if not n.startswith("model.") and n != "lm_head.weight"), None):
        return f"{architecture(config)} has weights ({other}) for which transformers' LLaVA has no place"
    return ""


class TransformersLlava:
    """LLaVA in a `llava-hf` folder or hub repository; see `sources.Source`."""

    def __init__(self, reference: str, settings: dict[str, Any]) -> None:
        self.reference = reference
        try:
            self.config = LlavaConfig.from_dict(settings)
        except Exception as error:  # of many kinds, for values that transformers does not know
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{reference}: config.json: not a LLaVA that transformers knows ({reason})") from None
        self.image_token: int | None = self.config.image_token_index
        self._weights: Weights | None = None

    def spec(self, language: str | None) -> ModelSpec:
        """See `sources.Source`."""
        if language is not None:
            raise UserError(f"{self.reference}: brings its language model; leave out the other one, {language}")
        config = self.config
        if fault := language_fault(self.language_config(), (), self.reference):
            raise UserError(f"{self.reference}: {fault}, so that there are no figures of its own to agree with")
        vision = read_vision_config(self.reference)
        where = f"{self.reference}: config.json: vision_feature_layer"
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else list(layers)
        blocks = [block_of_layer(layer, vision.num_hidden_layers, where) for layer in layers]
        if sorted(set(depths := [b % vision.num_hidden_layers for b in blocks])) != depths:
            raise UserError(f"{where} {layers}: expected layers from the first to the last, each once")
        fit, _ = read_processor(self.reference, vision.image_size)
        options = VisionOptions(
            tower=f"clip:{self.reference}",
            weights="pretrained",
            blocks=blocks,
            fit=fit,
            class_token=_SELECTED[config.vision_feature_select_strategy],
        )
        return ModelSpec(self.reference, options, self._projector_kind(), template_of(self.reference))

    def language_config(self) -> Any:
        """See `sources.Source`."""
        config = copy.deepcopy(self.config.text_config)
        config.tie_word_embeddings = self.config.tie_word_embeddings
        config.dtype = self.config.dtype or config.dtype
        return config

    def language_state(self) -> State:
        """See `sources.Source`."""
        renamed = {}
        for name in self._held().files:
            new = next(
                (ours + name.removeprefix(theirs) for theirs, ours in _LANGUAGE if name.startswith(theirs)), None
            )
            if new is not None:
                renamed[name] = new
        return {renamed[name]: tensor for name, tensor in self._held().read(renamed).items()}

    def projector_state(self) -> State:
        """See `sources.Source`; a projector without biases gets biases of zero."""
        renamed = {}
        for name in self._held().files:
            if "multi_modal_projector." in name:
                layer, _, kind = name.rpartition("multi_modal_projector.")[2].partition(".")
                renamed[name] = f"{_PROJECTOR.get(layer, layer)}.{kind}"
        state = {renamed[name]: tensor for name, tensor in self._held().read(renamed).items()}
        if not self.config.multimodal_projector_bias:
            for layer in ("0", "2"):
                if f"{layer}.weight" in state:
                    state[f"{layer}.bias"] = state[f"{layer}.weight"].new_zeros(len(state[f"{layer}.weight"]))
        return self._without_identity(state)

    def adapter_state(self) -> State | None:
        """See `sources.Source`."""
        return None

    def _held(self) -> Weights:
        if self._weights is None:
            self._weights = Weights.of(self.reference)
        if self._weights is None:
            raise UserError(f"{self.reference}: expected model.safetensors or pytorch_model.bin, found no weights")
        return self._weights

    def _projector_kind(self) -> ProjectorKind:
        act = self.config.projector_hidden_act
        if act not in ("gelu", "linear"):
            raise UserError(
                f"{self.reference}: config.json: projector_hidden_act: expected gelu or linear, found {act}"
            )
        return "mlp2x_gelu" if act == "gelu" else "linear"

    def _without_identity(self, state: State) -> State:
        """Remove the second layer of a linear projector, which is the identity.

        transformers' projector has two layers, so a linear projector is exported with the identity as the second.
        """
        if self._projector_kind() == "mlp2x_gelu" or "2.weight" not in state:
            return state
        second, bias = state.pop("2.weight"), state.pop("2.bias", torch.zeros(1))
        if not torch.equal(second, torch.eye(len(second), dtype=second.dtype)) or bias.any():
            raise UserError(
                f"{self.reference}: projector_hidden_act linear: expected the second layer to be the identity, as "
                "mmtune writes it, found another"
            )
        return state
