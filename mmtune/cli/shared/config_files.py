"""Config files named by `--config`."""

from __future__ import annotations

from pathlib import Path

from mmtune.common.errors import UserError
from mmtune.common.files import find_resource
from mmtune.common.layers import layers_of
from mmtune.common.masking import remember


def with_config_paths(argv: list[str]) -> list[str]:
    """Replace the value of each `--config` by a path; it may be the bare name of a config that mmtune ships.

    The secrets of the configs are stored, so that later output masks them.

    Raises:
        UserError: a config cannot be read, or holds no keys and values.
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
    """Return the path of a config after a check that it can be read; the parser's own error would not name it."""
    path = find_resource("configs", name)
    try:
        for layer in layers_of(path, "configs"):
            remember(layer.settings)
    except UserError as error:
        raise UserError(f"--config {error}") from None
    return path
