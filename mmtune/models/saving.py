"""Saved models: what was trained, and how to find the rest.

MODEL/mmtune.json             the parts (ModelSpec) and the format's version
MODEL/projector.safetensors   the projector, and the features' standardisation
MODEL/adapter/                the adapters, in peft's format, if there are any
MODEL/language/               the language model, in transformers' format, if it was finetuned in full
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mmtune.errors import UserError
from mmtune.files import atomic_path, locate, read_json, write_json
from mmtune.models.language import load_config
from mmtune.models.options import ModelSpec

if TYPE_CHECKING:
    from mmtune.models.vlm import VisionLanguageModel

FORMAT = 1
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SPEC_FILE, PROJECTOR_FILE, ADAPTER_FOLDER, LANGUAGE_FOLDER = (
    "mmtune.json",
    "projector.safetensors",
    "adapter",
    "language",
)


def model_folder(reference: str) -> Path | None:
    """The folder of a saved model: the reference itself, or its `model/` where it is a run; None if neither."""
    path = locate(reference)
    return next((p for p in (path, path / "model") if (p / SPEC_FILE).is_file()), None)


def read_spec(reference: str) -> ModelSpec:
    """What a saved model is made of; a plain language model is one without a tower.

    Raises:
        UserError: there is no model there.
    """
    folder = model_folder(reference)
    if folder is None:
        if (locate(reference) / "checkpoints").is_dir():
            raise UserError(
                f"{reference}: the run has no model/ yet; finish it with `mmtune fit` and the same --config"
            )
        if reference.startswith("runs/") and not locate(reference).exists():
            raise UserError(f"{reference}: no such run; train it first, or name another run, saved model or hub id")
        load_config(reference)
        return ModelSpec(language=reference, template="tokenizer")
    saved = read_json(folder / SPEC_FILE)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UserError(f"{folder / SPEC_FILE}: not a model saved by this version of mmtune (format {FORMAT})")
    if not isinstance(saved.get("spec"), dict):
        raise UserError(f"{folder / SPEC_FILE}: lacks the model's parts ('spec'); save or copy the model again")
    spec = ModelSpec.from_dict(saved["spec"], str(folder / SPEC_FILE))
    if (folder / LANGUAGE_FOLDER).is_dir():
        spec.language = str(folder / LANGUAGE_FOLDER)
    elif spec.language_trained:
        raise UserError(f"{folder / LANGUAGE_FOLDER}: missing from the saved model; save or copy it again")
    return spec


def load(cls: type[VisionLanguageModel], reference: str, *, dtype: torch.dtype) -> VisionLanguageModel:
    """See `VisionLanguageModel.from_pretrained`."""
    spec = read_spec(reference)
    model = cls.assemble(spec, dtype=dtype)
    if (folder := model_folder(reference)) is not None:
        load_trained(model, folder)
    return model


def load_trained(model: VisionLanguageModel, folder: Path) -> None:
    """Load a saved projector, standardisation and adapters into a model of the same parts.

    A model that was aligned has no adapters yet; those of a model to tune keep their first weights.

    Raises:
        UserError: a file is missing, damaged, or of another shape.
    """
    if model.projector is not None:
        _load_into(model, _read(folder / PROJECTOR_FILE), folder / PROJECTOR_FILE)
    if model.spec.lora is not None and read_spec(str(folder)).lora is not None:
        from peft import set_peft_model_state_dict

        file = folder / ADAPTER_FOLDER / "adapter_model.safetensors"
        try:
            outcome = set_peft_model_state_dict(model.language, _read(file))
        except RuntimeError:  # shapes that differ
            raise UserError(f"{file}: the adapter does not fit the language model {model.spec.language}") from None
        if outcome.unexpected_keys or any("lora_" in key for key in outcome.missing_keys):
            raise UserError(f"{file}: the adapter does not fit the language model {model.spec.language}")


def save(model: VisionLanguageModel, folder: Path) -> None:
    """See `VisionLanguageModel.save_pretrained`."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / SPEC_FILE, {"format": FORMAT, "spec": model.spec.to_dict()})
        if model.projector is not None:
            safetensors.torch.save_file(_projector_state(model), temporary / PROJECTOR_FILE)
        if model.spec.lora is not None:
            model.language.save_pretrained(temporary / ADAPTER_FOLDER, save_embedding_layers=False)
            _without_machine_paths(temporary / ADAPTER_FOLDER, model.spec.language)
        elif model.spec.language_trained:
            model.language.save_pretrained(temporary / LANGUAGE_FOLDER)
            model.tokenizer.save_pretrained(temporary / LANGUAGE_FOLDER)


def trained_state(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Every tensor that training may have changed, by its name in the model."""
    state = _projector_state(model)
    for name, parameter in model.language.named_parameters():
        if "lora_" in name or (model.spec.lora is None and model.spec.language_trained):
            state[f"language.{name}"] = parameter
    return state


def describe(model: VisionLanguageModel) -> str:
    """The spec, and the sum of all bits and samples of the frozen weights, as one canonical text.

    Names alone would not tell a base that was trained again in the same folder. A model finetuned in full goes by its
    weights and not by a name, which is the base's before saving and a folder's after.
    """
    spec = model.spec.to_dict()
    if model.spec.lora is None and model.spec.language_trained:
        spec["language"] = None
    trained = set(trained_state(model))
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name not in trained and not parameter.is_meta:
            values = parameter.detach().flatten()
            total = int(values.view(_INTEGERS[values.element_size()]).sum(dtype=torch.int64))
            digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {total}".encode())
            digest.update(values[:: max(1, len(values) // 256)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return json.dumps({**spec, "frozen": digest.hexdigest()}, sort_keys=True)


def _projector_state(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    if model.projector is None or model.tower is None:
        return {}
    state = {f"projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    state["tower.feature_mean"], state["tower.feature_std"] = (
        model.tower.feature_mean,
        model.tower.feature_std,
    )
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _load_into(model: VisionLanguageModel, state: dict[str, torch.Tensor], file: Path) -> None:
    own = _projector_state(model)
    if set(own) != set(state) or any(own[name].shape != state[name].shape for name in own):
        raise UserError(f"{file}: the projector does not fit the tower and the language model of {SPEC_FILE}")
    for name, tensor in own.items():
        with torch.no_grad():
            tensor.copy_(state[name])


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise UserError(f"{file}: missing from the saved model; save or copy it again")
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); copy the saved model again") from None


def _without_machine_paths(adapter: Path, language: str) -> None:
    """peft notes the folder the base was loaded from, which is a cache of this machine; note the reference instead."""
    file = adapter / "adapter_config.json"
    config: dict[str, Any] = read_json(file)
    config["base_model_name_or_path"] = language
    write_json(file, config)
    (adapter / "README.md").unlink(missing_ok=True)  # peft's form for a model card, with the same folder in it
