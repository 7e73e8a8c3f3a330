"""Security checks of a parsed config, before any class in it is instantiated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from jsonargparse import Namespace

from mmtune.cli.shared.flag_errors import place_of
from mmtune.cli.shared.trusted_classes import objections
from mmtune.cli.shared.trusted_code import not_trusted, trusted_packages
from mmtune.common.errors import UserError
from mmtune.common.masking import MASK, is_secret, masked_address, remember

# addresses of the web and of fsspec's file systems, also chained; Lightning has a registry of checkpoints
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:(//|:)|registry:", re.IGNORECASE)
_SERVER = "tracking_uri"  # key of a logger's server, which may be any address


def check_config(config: Namespace, arguments: Sequence[str]) -> None:
    """Check that a config names no untrusted code, masked secret, credentials or unconfirmed address.

    Code and masked secrets are checked at every key; addresses with credentials in options of the trainer; addresses
    that the command line does not contain in options of the trainer and `ckpt_path`. A logger's `tracking_uri` and keys
    of secrets may hold any address. The config's secrets are stored, so that later output masks them.

    Args:
        config: parsed config of `mmtune fit`, `validate` or `plan`.
        arguments: the command line.

    Raises:
        UserError: the config is refused; the message names the config or flag, and the key.
    """
    remember(config.as_dict())
    for key, path, argument in objections(config, trusted_packages(arguments)):
        raise not_trusted(place_of(key, arguments), path, argument)
    for key, text in _texts(config):
        place = place_of(key, arguments)
        if MASK in text:
            raise UserError(
                f"{place}: a secret stood here, which was masked when the config was written; write it there again, "
                f"or give --{key}"
            )
        name = key.rpartition(".")[2]
        if not key.startswith(("trainer.", "ckpt_path")) or name == _SERVER or is_secret(name):
            continue
        if key != "ckpt_path" and masked_address(text) != text:
            raise UserError(
                f"{place}: holds credentials, and would be written into the run's files; leave them out, and give them "
                "as the service's own library says, in the environment or a file of its own"
            )
        if _ADDRESS.match(text) and not any(text in word for word in arguments):
            raise UserError(
                f"{place} {text}: an address counts on the command line alone; if you trust it, add --{key} {text}"
            )


def _texts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts and paths of a config, each with its dotted key; those in a list have the key of the list."""
    values = vars(config) if isinstance(config, Namespace) else config
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple | set):
        for value in values:
            yield from _texts(value, key)
    elif isinstance(values, str | PathLike):
        yield key, str(values)
