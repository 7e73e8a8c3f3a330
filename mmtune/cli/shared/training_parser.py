"""Parser of `mmtune fit`, `validate` and `plan`, with errors of one line and masked secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import yaml  # isort: skip
from jsonargparse.typing import Path_fr
from lightning.pytorch.cli import LightningArgumentParser

from mmtune.cli.shared.flag_errors import reworded
from mmtune.common.errors import UserError
from mmtune.common.layers import layers_of, read_layered
from mmtune.common.masking import masked
from mmtune.common.text import visible


class TrainingParser(LightningArgumentParser):
    """Parser with error messages of one line, and without abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Raise an error, in place of printing the usage and exiting.

        Raises:
            UserError: always.
        """
        arguments = getattr(self, "args", None)
        if arguments is None:  # parser of the keys of one option; the parser of the whole line adds the rest
            raise UserError(message) from ex
        command = self.prog.split()[-1].replace("mmtune", arguments[0] if arguments else "fit")
        raise UserError(f"{reworded(message, self, arguments)} (mmtune {command} --help lists the flags)") from ex

    def parse_path(self, path: str | os.PathLike[str], **options: Any) -> Any:  # type: ignore[override]
        """Parse a config merged with those that it includes; relative paths in it start from its own folder."""
        if len(layers_of(Path(path), "configs")) == 1:
            return super().parse_path(path, **options)
        settings = yaml.safe_dump(read_layered(Path(path), "configs"), sort_keys=False)
        with Path_fr(str(path)).relative_path_context():
            return self.parse_string(settings, path=Path(path).name, **options)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML with secrets masked: it is printed, stored in runs, and sent to loggers.

        Control and invisible characters are written as YAML's escapes.
        """
        text: str = super().dump(*args, **kwargs)
        config = yaml.safe_load(text)
        if (safe := masked(config)) == config and visible(text) == text:
            return text
        return yaml.safe_dump(safe, sort_keys=False, allow_unicode=visible(text) == text)
