"""Schema of `reproduce.json`, which `mmtune reproduce` writes for reports: runs of a comparison, finished or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.common.files import read_json
from mmtune.common.schema import validate

RECORD = "reproduce.json"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """Run and its evaluation, as paths relative to the comparison's folder; the run is None where it lies elsewhere."""

    seed: int | None
    run: str | None
    evaluation: str


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """Named variant: runs that differ only in their seed."""

    name: str
    runs: list[PlannedRun]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Content of `reproduce.json`.

    Attributes:
        settings: settings that must be unchanged when the comparison is continued.
        inputs: hashes of the input files and settings of the runs, by name.
        seeds: seeds of the runs.
        variants: the compared variants.
        seen: tasks with rows or images in the training data, or not compared with it, each with the reason.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    variants: list[PlannedVariant]
    seen: dict[str, str] = field(default_factory=dict)


def read_plan(folder: Path) -> Plan:
    """Read the `reproduce.json` of a folder.

    Raises:
        UserError: it is missing or damaged; the message names the file and the key.
    """
    file = folder / RECORD
    return validate(Plan, read_json(file), str(file), extra="ignore", remedy="it was not written by mmtune reproduce")
