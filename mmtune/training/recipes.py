"""Conversion of configs to arguments of `mmtune.fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.files import find_resource, resource_folder
from mmtune.common.layers import read_layered
from mmtune.models.saving import model_folder

_ARGUMENTS = {
    "model": "model",
    "data": "data",
    "out": "out",
    "checkpoint_every": "checkpoint_every",
    "new_schedule": "new_schedule",
    "seed_everything": "seed",
}


def recipe(config: str | Path, **changes: Any) -> dict[str, Any]:
    """Read a config as arguments of `mmtune.fit`; each option of the trainer becomes a separate argument.

    `mmtune.fit(**mmtune.recipe("quickstart", out="runs/short", max_steps=4))` is what
    `mmtune fit --config quickstart --out runs/short --trainer.max_steps 4` does.

    Args:
        config: a config that mmtune ships, by its name, or a YAML file, as RUN/config.yaml.
        **changes: arguments that override those of the config.

    Raises:
        UserError: it cannot be read, or has a setting that only the command line takes; the key is named.
    """
    path = find_resource("configs", str(config))
    settings = read_layered(path, "configs")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no keys and values; the configs that mmtune ships show how")
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "trainer" and isinstance(value, dict):
            plain = {name: option for name, option in value.items() if name not in changes}
            found |= {name: _no_class(option, f"{path}: trainer.{name}") for name, option in plain.items()}
        elif key == "objective" and key not in changes:
            raise UserError(f"{path}: objective: was {value!r}; give an object of it, as objective=…")
        elif key in _ARGUMENTS:
            found[_ARGUMENTS[key]] = value
        elif value is not None and key not in changes:
            raise UserError(f"{path}: {key}: is not for Python; {did_you_mean(str(key), [*_ARGUMENTS, 'trainer'])}")
    return found | changes


def recipe_of_base(base: str | Path | None) -> dict[str, Any] | None:
    """Return the settings of the shipped config that produces a missing base run.

    Args:
        base: the run that another run starts from.

    Returns:
        The settings; None if the base exists, or there is no such config.
    """
    name = Path(base or "").name
    shipped = {path.stem for path in resource_folder("configs").glob("*.yaml")}
    if not base or name not in shipped or model_folder(str(base)) is not None:
        return None
    settings: dict[str, Any] = read_layered(find_resource("configs", name), "configs")
    return settings if settings.get("out") == str(base) else None


def _no_class(option: Any, where: str) -> Any:
    """Return an option of the trainer, after a check that it names no class to create.

    Raises:
        UserError: it names a class.
    """
    for one in option if isinstance(option, list) else [option]:
        if isinstance(one, dict) and "class_path" in one:
            name = where.rpartition(".")[2]
            raise UserError(
                f"{where}: names the class {one['class_path']}; give an object of it or something else, as {name}=…"
            )
    return option
