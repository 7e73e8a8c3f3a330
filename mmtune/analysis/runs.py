"""The run that an evaluated model is of: which one it was, its settings and what it cost."""

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
    """What is needed of `ledger.json`."""

    train_s: Number
    samples: Number
    tower_passes: Number
    tokens: Annotated[dict[str, Number], _with("text", "image")]
    flops: Annotated[dict[str, Number], _with("language")]


def run_of(evaluation: Path, model: str) -> Path | None:
    """The run that made the model: the folder above the evaluation if it is that run, or where the model is.

    Args:
        evaluation: the folder of the evaluation.
        model: what its results call the model.
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
    """A run's config.yaml, flat, by dotted key; {} where there is none.

    Raises:
        UserError: it is no YAML mapping.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file}: holds no settings; it was not written by mmtune fit")
    return dict(_flat(raw))


def read_ledger(run: Path) -> dict[str, Any] | None:
    """A run's ledger.json; None where there is none.

    Raises:
        UserError: it lacks a figure.
    """
    file = run / "ledger.json"
    if not file.is_file():
        return None
    ledger: dict[str, Any] = read_json(file)
    validate(_Ledger, ledger, str(file), extra="ignore", remedy="it was not written by mmtune fit")
    return ledger


def _is_model(run: Path, model: str) -> bool:
    """Whether results that name this model are of the run, which may have been moved since, or written elsewhere."""
    name = Path(model.removesuffix("/model")).name
    return bool(name) and ":" not in model and name in (run.resolve().name, Path(str(read_config(run).get("out"))).name)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
