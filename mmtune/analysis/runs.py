"""Training run of an evaluated model: find its directory, and read its settings and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from mmtune.common.errors import UserError
from mmtune.common.files import locate, read_json, read_yaml
from mmtune.common.schema import Number, validate


def _with(*names: str) -> AfterValidator:
    def check(values: dict[str, float]) -> dict[str, float]:
        for name in names:
            if name not in values:
                raise ValueError(f"key {name!r} is missing")
        return values

    return AfterValidator(check)


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Required fields of `ledger.json`."""

    train_s: Number
    samples: Number
    tower_passes: Number
    tokens: Annotated[dict[str, Number], _with("text", "image")]
    flops: Annotated[dict[str, Number], _with("language")]


def run_of(evaluation: Path, model: str) -> Path | None:
    """Return the directory of the run that trained the model, or None if it is not found.

    It is the evaluation's folder or the nearest one above it that holds a ledger and belongs to the model, else the
    path that the model's name stands for, if a ledger is there.

    Args:
        evaluation: the folder of the evaluation.
        model: name of the model in the results of the evaluation.
    """
    for folder in (evaluation, *evaluation.absolute().parents):
        if (folder / "ledger.json").is_file() and _is_model(folder, model):
            return folder
    try:
        place = locate(model)
    except UserError:
        return None
    return place if model and (place / "ledger.json").is_file() else None


def read_config(run: Path) -> dict[str, Any]:
    """Read the config.yaml of a run as a flat dict by dotted key; {} where the file is missing.

    Raises:
        UserError: it is not a YAML mapping.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file}: holds no settings; it was not written by mmtune fit")
    return dict(_flat(raw))


def read_ledger(run: Path) -> dict[str, Any] | None:
    """Read the ledger.json of a run; None where the file is missing.

    Raises:
        UserError: it is damaged or lacks a required field.
    """
    file = run / "ledger.json"
    if not file.is_file():
        return None
    ledger: dict[str, Any] = read_json(file)
    validate(_Ledger, ledger, str(file), extra="ignore", remedy="it was not written by mmtune fit")
    return ledger


def _is_model(run: Path, model: str) -> bool:
    """Return whether the model's name is that of the run's folder, or of its recorded output folder.

    Paths are not compared: the run may have been moved since.
    """
    name = Path(model.removesuffix("/model")).name
    return bool(name) and ":" not in model and name in (run.resolve().name, Path(str(read_config(run).get("out"))).name)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
