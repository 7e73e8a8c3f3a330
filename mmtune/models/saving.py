"""Saved models: the trained weights, and references to the other parts.

MODEL/mmtune.json             the parts (ModelSpec) and the format's version
MODEL/projector.safetensors   the projector, and the standardization of the features
MODEL/adapter/                the adapters, in peft's format, if there are any
MODEL/language/               the language model, in transformers' format, if it was finetuned in full
"""

from __future__ import annotations

import functools
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from mmtune.common.errors import UserError, reason
from mmtune.common.files import SCHEMES, atomic_path, locate, read_json, write_json
from mmtune.data.rendering.template_date import check_date
from mmtune.models.composed import ComposedModel
from mmtune.models.interop.sources import Source, check_vocabulary, open_source
from mmtune.models.language import load_config
from mmtune.models.load_errors import explaining
from mmtune.models.spec import ModelSpec

Model = TypeVar("Model", bound=ComposedModel)
FORMAT = 1
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
SPEC_FILE, PROJECTOR_FILE, ADAPTER_FOLDER, LANGUAGE_FOLDER = (
    "mmtune.json",
    "projector.safetensors",
    "adapter",
    "language",
)


def model_folder(reference: str) -> Path | None:
    """Return the folder of a saved model: the reference itself, or its `model/` if it is a run; None if neither."""
    path = locate(reference)
    return next((p for p in (path, path / "model") if (p / SPEC_FILE).is_file()), None)


def read_spec(
    reference: str, *, language: str | None = None, template: str | None = None, template_date: str | None = None
) -> ModelSpec:
    """Read the spec of a saved model, ours or another tool's; a plain language model is a spec without a tower.

    Args:
        reference: a run, a saved model, a LLaVA of another tool, or a language model.
        language: the language model that adapters or a projector belong to, in place of the one that they name.
        template: template in place of the recorded one.
        template_date: date in place of the recorded one.

    Raises:
        UserError: there is no model there, or `language` is given for a model that has its own.
    """
    spec = _read_spec(reference, language)
    if template is not None:
        spec.template = template
    if template_date is not None:
        spec.template_date = check_date(template_date, "--template-date")
    return spec


def _read_spec(reference: str, language: str | None) -> ModelSpec:
    own = f"{reference}: brings its language model; leave out the other one, {language}"
    folder = model_folder(reference)
    if folder is None:
        if any((locate(reference) / left).exists() for left in ("checkpoints", "config.yaml")):
            raise UserError(
                f"{reference}: the run has no model/ yet; finish it with `mmtune fit` and the same --config"
            )
        if reference.startswith("runs/") and not locate(reference).exists():
            raise UserError(f"{reference}: no such run; train it first, or name another run, saved model or hub id")
        with explaining(partial(_not_a_model, reference)):
            if (source := open_source(reference)) is not None:
                spec = source.spec(language)
                spec.check(reference)
                _tell_of_hub(reference, spec)
                return spec
        load_config(reference)
        if language is not None:
            raise UserError(own)
        return ModelSpec(language=reference, template="tokenizer")
    saved = read_json(folder / SPEC_FILE)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UserError(f"{folder / SPEC_FILE}: not a model saved by this version of mmtune (format {FORMAT})")
    if not isinstance(saved.get("spec"), dict):
        raise UserError(f"{folder / SPEC_FILE}: lacks the model's parts ('spec'); save or copy the model again")
    spec = ModelSpec.from_dict(saved["spec"], str(folder / SPEC_FILE))
    inside = folder / LANGUAGE_FOLDER
    if spec.language_trained and not inside.is_dir():
        raise UserError(f"{inside}: missing from the saved model; save or copy it again")
    if inside.is_dir() and language is not None:
        raise UserError(own)
    spec.language = str(inside) if inside.is_dir() else language or spec.language
    if language is None:
        _tell_of_hub(reference, spec)
    return spec


def _tell_of_hub(reference: str, spec: ModelSpec) -> None:
    """Print which hub repositories a model names as its parts, before they are downloaded."""
    named = [spec.language]
    if spec.vision and spec.vision.tower.startswith("clip:"):
        named += [spec.vision.tower.removeprefix("clip:"), spec.vision.weights]
    for repository in dict.fromkeys(named):
        if _HUB_ID.fullmatch(repository) and repository != reference:
            _tell_of_repository(reference, repository)


@functools.cache  # print once, even if a command reads the spec several times
def _tell_of_repository(reference: str, repository: str) -> None:
    if locate(repository).exists():
        return
    with suppress(HFValidationError):  # for a name that is no valid hub id
        if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
            print(f"mmtune: note: {reference} names {repository}, which is fetched from the hub", file=sys.stderr)


def _not_a_model(reference: str, error: Exception) -> UserError:
    problem = f"a JSON file of it has a value that no such model has ({type(error).__name__}: {reason(error)})"
    return UserError(f"{reference}: {problem}; download it again")


def load(
    cls: type[Model],
    reference: str,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    language: str | None = None,
    template: str | None = None,
    template_date: str | None = None,
) -> Model:
    """Load a model; see `VisionLanguageModel.from_pretrained`."""
    spec = read_spec(reference, language=language, template=template, template_date=template_date)
    model = cls.assemble(spec, dtype=dtype, device=device)
    load_trained(model, reference)
    return model


def load_trained(model: ComposedModel, reference: str) -> None:
    """Load the projector, standardization and adapters of a reference into a model of the same parts.

    A model that was only aligned has no adapters yet; the adapters of a model to tune keep their initial weights.

    Raises:
        UserError: a file is missing, damaged, or of another shape.
    """
    if (folder := model_folder(reference)) is None:
        with explaining(partial(_not_a_model, reference)):
            if (source := open_source(reference)) is not None:
                _load_source(model, source)
        return
    if model.projector is not None:
        _load_into(model, _read(folder / PROJECTOR_FILE), str(folder / PROJECTOR_FILE))
    if model.spec.lora is not None and read_spec(str(folder)).lora is not None:
        inside = folder / ADAPTER_FOLDER  # an export to peft has the adapter beside the rest
        file = (inside if inside.is_dir() else folder) / "adapter_model.safetensors"
        _load_adapter(model, _read(file), str(file))


def _load_source(model: ComposedModel, source: Source) -> None:
    """Load the projector and the adapter of another tool's LLaVA, after a check of its vocabulary."""
    if model.spec.language == source.reference:
        check_vocabulary(source, model.tokenizer, len(model.base_language.get_input_embeddings().weight))
    state = {f"projector.{name}": tensor for name, tensor in source.projector_state().items()}
    _load_into(model, state, source.reference)
    adapter = source.adapter_state()
    if adapter is not None and model.spec.lora is not None:
        _load_adapter(model, adapter, source.reference)


def _load_adapter(model: ComposedModel, state: dict[str, torch.Tensor], where: str) -> None:
    from peft import set_peft_model_state_dict

    try:
        outcome = set_peft_model_state_dict(model.language, state)
    except RuntimeError:  # shapes that differ
        raise UserError(f"{where}: the adapter does not fit the language model {model.spec.language}") from None
    if outcome.unexpected_keys or any("lora_" in key for key in outcome.missing_keys):
        raise UserError(f"{where}: the adapter does not fit the language model {model.spec.language}")


def save(model: ComposedModel, folder: Path) -> None:
    """Save a model; see `VisionLanguageModel.save_pretrained`."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_parts(model, temporary)
        if model.spec.lora is not None:
            write_adapter(model, temporary / ADAPTER_FOLDER)
        elif model.spec.language_trained:
            model.language.generation_config.eos_token_id = model.end_ids() or None
            model.language.save_pretrained(temporary / LANGUAGE_FOLDER)
            model.tokenizer.save_pretrained(temporary / LANGUAGE_FOLDER)


def write_parts(model: ComposedModel, folder: Path) -> None:
    """Write the files that every saved model has: the names of its parts, and the projector if there is one."""
    spec = model.spec.to_dict()
    spec["language"] = _from_anywhere(model.spec.language)
    if model.spec.vision is not None:
        kind, mark, tower = model.spec.vision.tower.partition("clip:")
        spec["vision"]["tower"] = kind + mark + (_from_anywhere(tower) if mark else tower)
        spec["vision"]["weights"] = _from_anywhere(model.spec.vision.weights)
    write_json(folder / SPEC_FILE, {"format": FORMAT, "spec": spec})
    if model.projector is not None:
        safetensors.torch.save_file(projector_state(model), folder / PROJECTOR_FILE)


def write_adapter(model: ComposedModel, folder: Path) -> None:
    """Write the adapters in peft's layout."""
    model.language.save_pretrained(folder, save_embedding_layers=False)
    _settle_adapter_config(folder, _from_anywhere(model.spec.language))


def trained_state(model: ComposedModel) -> dict[str, torch.Tensor]:
    """Return every tensor that training may have changed, by its name in the model."""
    state = projector_state(model)
    for name, parameter in model.language.named_parameters():
        if "lora_" in name or (model.spec.lora is None and model.spec.language_trained):
            state[f"language.{name}"] = parameter
    return state


def projector_state(model: ComposedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of the projector and of the feature standardization, under the names in the saved file."""
    if model.projector is None or model.tower is None:
        return {}
    state = {f"projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    state["tower.feature_mean"], state["tower.feature_std"] = (
        model.tower.feature_mean,
        model.tower.feature_std,
    )
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _load_into(model: ComposedModel, state: dict[str, torch.Tensor], where: str) -> None:
    """Load a projector; one of another tool has no standardization of the features."""
    own = projector_state(model)
    own = {name: tensor for name, tensor in own.items() if name in state or name.startswith("projector.")}
    expected, found = ({name: list(t.shape) for name, t in tensors.items()} for tensors in (own, state))
    if expected != found:
        raise UserError(
            f"{where}: the projector does not fit the tower and the language model: expected {_shapes(expected)}, "
            f"found {_shapes(found)}"
        )
    for name, tensor in own.items():
        with torch.no_grad():
            tensor.copy_(state[name])


def _shapes(shapes: dict[str, list[int]]) -> str:
    listed = [f"{name.removeprefix('projector.')} {shape}" for name, shape in sorted(shapes.items())]
    return ", ".join(name for name in listed if not name.startswith("tower.")) or "nothing"


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise UserError(f"{file}: missing from the saved model; save or copy it again")
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); copy the saved model again") from None


def _from_anywhere(reference: str) -> str:
    """Return a local path as an absolute path, and any other reference unchanged."""
    path = locate(reference)
    return str(path.absolute()) if not reference.startswith(SCHEMES) and path.exists() else reference


def _settle_adapter_config(adapter: Path, language: str) -> None:
    """Make peft's settings identical for the same adapter, in any folder and any process that trains it."""
    file = adapter / "adapter_config.json"
    config: dict[str, Any] = read_json(file)
    config["base_model_name_or_path"] = (
        language  # for peft it is the folder it was loaded from, a cache of this machine
    )
    config["target_modules"] = sorted(config["target_modules"])  # a set, in the order of this process' hashes
    write_json(file, config)
    (adapter / "README.md").unlink(missing_ok=True)  # peft's form for a model card, with the same folder in it
