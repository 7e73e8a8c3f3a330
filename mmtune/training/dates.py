"""Date in the chat template of a run: a resumed run keeps the date of its first day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError
from mmtune.common.files import read_yaml


def keep_date(model: Any, run: Path) -> None:
    """Set the template date in the module's options to the date of the run to resume.

    Args:
        model: the options under `--model`, which may name a date.
        run: the run directory.

    Raises:
        UserError: another date is given than the run to resume began with.
    """
    file = run / "config.yaml"
    if not (run / "checkpoints").is_dir() or not file.is_file():
        return
    recorded = read_yaml(file)
    then = recorded.get("model", {}).get("template_date") if isinstance(recorded, dict) else None
    if then is None:
        return
    if model.template_date not in (None, str(then)):
        raise UserError(
            f"the run to resume began with --model.template_date {then}, not {model.template_date}; give that, or "
            "another --out"
        )
    model.template_date = str(then)
