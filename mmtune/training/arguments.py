"""Conversion of Python arguments of a run to the module and the data module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError, did_you_mean
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import ModelInputs
from mmtune.data.mixture import Mixture
from mmtune.data.sources.in_memory import rows_file
from mmtune.models.saving import model_folder
from mmtune.models.spec import LoraOptions, VisionOptions
from mmtune.training.module import InstructionTuning


def model_options(model: Any) -> dict[str, Any]:
    """Convert a path, a hub id or a mapping to options of `InstructionTuning`.

    Raises:
        UserError: it is something else, or names an unknown option.
    """
    if isinstance(model, str | Path):
        return {"base" if model_folder(str(model)) is not None else "language": str(model)}
    if not isinstance(model, Mapping):
        raise UserError(f"model: is a {type(model).__name__}; give a path, a hub id, or a dict of options")
    check_names(model, InstructionTuning, "model")
    return dict(model)


def data_options(data: Any) -> dict[str, Any]:
    """Convert rows, paths or a mapping to options of `InstructionData`; rows in memory are written to a file.

    Raises:
        UserError: they are no rows, or the mapping names an unknown option.
    """
    if isinstance(data, str | Path):
        return {"train": {"visual": [str(data)]}}
    if isinstance(data, Sequence) and data and all(isinstance(one, str | Path) for one in data):
        return {"train": {"visual": list(map(str, data))}}
    if not isinstance(data, Mapping):
        return {"train": {"visual": [str(rows_file(data))]}}
    check_names(data, InstructionData, "data")
    found = dict(data)
    if found.get("validation") is not None:
        found["validation"] = _sources(found["validation"], "data.validation")
    train = found.get("train")
    if not isinstance(train, Mapping):
        found["train"] = data_options(train)["train"] if train is not None else {}
        return found
    check_names(train, Mixture, "data.train")
    kinds = ("text", "visual")
    read = {kind: _sources(train[kind], f"data.train.{kind}") for kind in kinds if train.get(kind) is not None}
    found["train"] = {**train, **read}
    return found


def _sources(given: Any, name: str) -> list[str]:
    """Return files and hub ids as a list; rows in memory are written to a file."""
    if isinstance(given, str | Path):
        return [str(given)]
    if isinstance(given, Sequence) and all(isinstance(one, str | Path) for one in given):
        return list(map(str, given))
    return [str(rows_file(given, name))]


def make_module(options: Mapping[str, Any]) -> InstructionTuning:
    """Create a module from its options, in which `lora` and `vision` may be mappings.

    Raises:
        UserError: one of the two mappings has an unknown option.
    """
    options = dict(options)
    kinds: dict[str, Callable[..., Any]] = {"lora": LoraOptions, "vision": VisionOptions}
    for name, kind in kinds.items():
        if isinstance(options.get(name), Mapping):
            check_names(options[name], kind, f"model.{name}")
            options[name] = kind(**options[name])
    return InstructionTuning(**options)


def make_datamodule(options: Mapping[str, Any], inputs: ModelInputs | None = None) -> InstructionData:
    """Create the data module from its options, in which `train` is a mapping; `inputs` are those of the module."""
    return InstructionData(**{**options, "train": Mixture(**options["train"]), "inputs": inputs})


def check_names(given: Mapping[str, Any], kind: Callable[..., Any], where: str) -> None:
    """Check that a function or class has the given options.

    Raises:
        UserError: an option is unknown; the nearest known name is suggested.
    """
    known = [name for name in inspect.signature(kind).parameters if name not in ("self", "inputs")]
    for name in given:
        if name not in known:
            raise UserError(f"{where}: there is no option {name!r}; {did_you_mean(str(name), known)}")
