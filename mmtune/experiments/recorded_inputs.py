"""Hashes of the inputs of `quickstart` and `reproduce`, which show whether files have changed between two calls."""

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
    """Return the SHA-256 of training files, configs, tasks, evaluation files and the given base model, by name.

    Images of training rows, rows on the hub and the code are not included.

    Args:
        files: files of training rows; references that are not local files (hub ids) are left out.
        configs: names or paths of configs of `fit`.
        suite: name or file of a suite.
        data_root: folder with the rows of the suite, or None for the hub.
        base: aligned model given by the user, or None; a hub id is left out.
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
    """Return the names of the first three inputs that differ, with the number of others; "" if none differs."""
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
