"""Layout of the released LLaVA code: `liuhaotian/llava-*`, and models that were trained with that code.

Three kinds of folder share it: a whole model; LoRA adapters with `non_lora_trainables.bin`; and the aligned projector
alone, `mm_projector.bin`. config.json is the language model's own, with the keys `mm_*` added.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

from transformers import AutoConfig

from mmtune.common.errors import UserError
from mmtune.common.files import locate
from mmtune.models.interop.chat_templates import template_of
from mmtune.models.interop.clip import block_of_layer, read_vision_config
from mmtune.models.interop.weights import State, Weights, find_file, read_settings, read_tensors
from mmtune.models.spec import ImageFit, LoraOptions, ModelSpec, ProjectorKind, VisionOptions

_LANGUAGES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaQwen2ForCausalLM": "qwen2",
}
# settings that change the model, and the values with which it stays LLaVA 1.5
_MUST: dict[str, tuple[Any, ...]] = {
    "mm_use_im_start_end": (False, None),
    "mm_patch_merge_type": ("flat", None),
    "s2": (False, None),
    "mm_projector_type": (*get_args(ProjectorKind), None),
    "mm_vision_select_feature": ("patch", "cls_patch", None),
    "image_aspect_ratio": ("pad", "square", "crop", None),
}
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_BESIDE_ADAPTER = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")
_PROJECTOR_NAME = "mm_projector."
_NOT_LANGUAGE = (_PROJECTOR_NAME, "vision_tower.")


class OriginalLlava:
    """LLaVA in a folder or hub repository in the released code's layout; see `sources.Source`."""

    image_token: int | None = None  # the released code cuts the text at <image> before it is tokenized

    def __init__(self, reference: str, settings: dict[str, Any]) -> None:
        self.reference, self.settings = reference, settings
        for key, expected in _MUST.items():
            if settings.get(key) not in expected:
                known = ", ".join(str(value) for value in expected if value is not None)
                raise UserError(f"{reference}: config.json: {key}: expected {known}, found {settings[key]}")

    def spec(self, language: str | None) -> ModelSpec:
        """See `sources.Source`."""
        settings = self.settings
        if self._weights is not None and language is not None:
            raise UserError(f"{self.reference}: brings its language model; leave out the other one, {language}")
        if self._weights is not None:
            self._architecture()
        tower = self._tower()
        layer = settings.get("mm_vision_select_layer", -2)
        where = f"{self.reference}: config.json: mm_vision_select_layer"
        fit: ImageFit = "pad" if settings.get("image_aspect_ratio") == "pad" else "crop"
        inside = self._weights is not None and any("vision_tower." in name for name in self._weights.files)
        options = VisionOptions(
            tower=f"clip:{tower}",
            weights=self.reference if inside else "pretrained",
            blocks=[block_of_layer(layer, read_vision_config(tower).num_hidden_layers, where)],
            fit=fit,
            class_token=settings.get("mm_vision_select_feature") == "cls_patch",
        )
        return ModelSpec(
            language=self.reference if self._weights is not None else language or self._base(),
            vision=options,
            projector=settings.get("mm_projector_type") or "linear",
            template=template_of(self.reference),
            lora=self._lora(),
        )

    def language_config(self) -> Any:
        """See `sources.Source`."""
        own = {key: value for key, value in self.settings.items() if key not in ("model_type", "architectures")}
        config = AutoConfig.for_model(self._architecture(), **own)
        if self.settings.get("torch_dtype"):
            config.dtype = self.settings["torch_dtype"]
        return config

    def language_state(self) -> State:
        """See `sources.Source`."""
        if self._weights is None:
            raise UserError(f"{self.reference}: expected the weights of a language model, found none")
        names = [name for name in self._weights.files if not any(part in name for part in _NOT_LANGUAGE)]
        return self._weights.read(names)

    def projector_state(self) -> State:
        """See `sources.Source`."""
        if self._weights is not None and any(_PROJECTOR_NAME in name for name in self._weights.files):
            state = self._weights.read(name for name in self._weights.files if _PROJECTOR_NAME in name)
        else:
            files = _BESIDE_ADAPTER if self._adapter_settings else _PROJECTOR
            file = next((f for name in files if (f := find_file(self.reference, name))), None)
            if file is None:
                raise UserError(f"{self.reference}: expected {' or '.join(files)} with the projector, found neither")
            state = read_tensors(file)
            if others := [name for name in state if _PROJECTOR_NAME not in name]:
                raise UserError(f"{file}: expected the projector (mm_projector.*) alone, found {others[0]} too")
        # a linear projector is one layer without a number
        inner = {name.rpartition(_PROJECTOR_NAME)[2]: tensor for name, tensor in state.items()}
        return {name if name[0].isdigit() else f"0.{name}": tensor for name, tensor in inner.items()}

    def adapter_state(self) -> State | None:
        """See `sources.Source`."""
        if self._adapter_settings is None:
            return None
        file = next((f for name in _ADAPTER if (f := find_file(self.reference, name))), None)
        if file is None:
            raise UserError(f"{self.reference}: expected {' or '.join(_ADAPTER)}, found neither; download it again")
        return read_tensors(file)

    @functools.cached_property
    def _weights(self) -> Weights | None:
        return Weights.of(self.reference)

    @functools.cached_property
    def _adapter_settings(self) -> dict[str, Any] | None:
        return read_settings(self.reference, "adapter_config.json")

    def _architecture(self) -> str:
        architectures = self.settings.get("architectures") or []
        if found := next((_LANGUAGES[name] for name in architectures if name in _LANGUAGES), None):
            return found
        raise UserError(
            f"{self.reference}: config.json: architectures: expected one of {', '.join(_LANGUAGES)}, "
            f"found {', '.join(architectures) or 'none'}"
        )

    def _tower(self) -> str:
        """Return the reference of the tower: a folder inside this one, or the name in the config."""
        named = str(self.settings["mm_vision_tower"])
        inside = locate(self.reference) / named
        tower = str(inside) if inside.is_dir() else named
        try:
            read_vision_config(tower)
        except UserError as error:
            raise UserError(f"{self.reference}: config.json: mm_vision_tower: {error}") from None
        return tower

    def _base(self) -> str:
        """Return the recorded name of the language model that an adapter or a projector belongs to."""
        named = (self._adapter_settings or {}).get("base_model_name_or_path") or self.settings.get("_name_or_path")
        if not named or not isinstance(named, str):
            file = (
                "adapter_config.json: base_model_name_or_path"
                if self._adapter_settings
                else "config.json: _name_or_path"
            )
            raise UserError(
                f"{self.reference}: expected weights, or the name of the language model that it belongs to, found "
                f"neither; write it into {file}"
            )
        return named

    def _lora(self) -> LoraOptions | None:
        settings = self._adapter_settings
        if settings is None:
            return None
        where = f"{self.reference}: adapter_config.json"
        if settings.get("peft_type", "LORA") != "LORA":
            raise UserError(f"{where}: peft_type: expected LORA, found {settings['peft_type']}")
        for key in ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"):
            if settings.get(key):
                raise UserError(f"{where}: {key}: expected none, found {settings[key]}")
        if settings.get("bias", "none") != "none":
            raise UserError(f"{where}: bias: expected none, found {settings['bias']}")
        targets = settings.get("target_modules")
        if not isinstance(targets, list):
            raise UserError(f"{where}: target_modules: expected a list of layer names, found {targets}")
        return LoraOptions(
            r=settings["r"],
            alpha=settings["lora_alpha"],
            dropout=settings.get("lora_dropout", 0.0),
            targets=sorted({str(target).rpartition(".")[2] for target in targets}),
            dora=bool(settings.get("use_dora")),
            rslora=bool(settings.get("use_rslora")),
        )
