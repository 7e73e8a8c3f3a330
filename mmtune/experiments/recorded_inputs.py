"""Content of what `quickstart` and `reproduce` start from: files that change between two calls are not the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from mmtune.common.files import find_resource, locate, sha256_file, sha256_json
from mmtune.common.layers import read_layered
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.models.saving import model_folder


def inputs_of(
    files: Iterable[str], configs: Iterable[str], suite: str, data_root: str | None, base: str | None
) -> dict[str, str]:
    """SHA-256 of all that decides the runs and their scores, by name; photos of rows and the hub's rows left out.

    Args:
        files: of training rows; those that are no local files (hub ids) are left out.
        configs: names or paths of configs of `fit`.
        suite: a suite's name or file.
        data_root: where the suite's rows are, or None for the hub.
        base: the aligned model that was given, or None.
    """
    found = {name: sha256_file(path) for name in files if (path := locate(name)).is_file()}
    for name in configs:
        settings = read_layered(find_resource("configs", name), "configs")
        found[f"config {name}"] = sha256_json(yaml.safe_dump(settings))  # as text: YAML knows dates, JSON does not
    for task in load_suite(suite).tasks:
        found[f"task {task.name}"] = task.definition_hash()
        if data_root is not None:
            rows = sorted((Path(data_root) / "hub" / task.dataset.path).rglob("*.parquet"))
            found |= {str(file): sha256_file(file) for file in rows}
    if base is not None and (folder := model_folder(base)) is not None:
        weights = sorted(file for file in folder.rglob("*") if file.is_file())
        found |= {str(file): sha256_file(file) for file in weights}
    return found


def changed(then: dict[str, str], now: dict[str, str]) -> str:
    """The first inputs that differ, in words; "" if none does."""
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
