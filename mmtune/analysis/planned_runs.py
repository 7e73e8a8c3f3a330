"""`reproduce.json`: the runs of a comparison, finished or not. `mmtune reproduce` writes it, reports are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.common.files import read_json
from mmtune.common.schema import validate

RECORD = "reproduce.json"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run and its evaluation, as paths from the comparison's folder; the run is None where it is not in there."""

    seed: int | None
    run: str | None
    evaluation: str


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[PlannedRun]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `reproduce.json` holds.

    Attributes:
        settings: what must be the same when the comparison goes on.
        inputs: the content that its runs are made of, as hashes by name.
        seeds: of the runs.
        variants: what is compared.
        seen: tasks that are not unseen, and why.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    variants: list[PlannedVariant]
    seen: dict[str, str] = field(default_factory=dict)


def read_plan(folder: Path) -> Plan:
    """Read the `reproduce.json` of a folder.

    Raises:
        UserError: it is missing or damaged; key and file are named.
    """
    file = folder / RECORD
    return validate(Plan, read_json(file), str(file), extra="ignore", remedy="it was not written by mmtune reproduce")
