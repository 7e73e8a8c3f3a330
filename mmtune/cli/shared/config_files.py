"""The files after `--config`."""

from __future__ import annotations

from pathlib import Path

from mmtune.common.errors import UserError
from mmtune.common.files import find_resource, read_yaml
from mmtune.common.masking import remember


def with_config_paths(argv: list[str]) -> list[str]:
    """Let `--config` take the bare name of a config that mmtune ships.

    Raises:
        UserError: one cannot be read, or holds no keys and values.
    """
    arguments = []
    for position, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if position and argv[position - 1] in ("--config", "-c"):
            argument = str(_config(argument))
        elif flag == "--config" and equals:
            argument = f"--config={_config(value)}"
        arguments.append(argument)
    return arguments


def _config(name: str) -> Path:
    """The file of a config; the parser's own complaint about one that cannot be read does not name it."""
    path = find_resource("configs", name)
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: holds no keys and values; the configs that mmtune ships show how")
    remember(values)
    return path
