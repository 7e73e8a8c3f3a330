"""What runs and evaluations left behind, read back: results, samples, ledgers and logged metrics."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.errors import UserError
from mmtune.files import read_json


@dataclass(frozen=True, slots=True)
class TaskChange:
    """One task's score before and after a training, shares from 0 to 1."""

    name: str
    modality: str
    rows: int
    before: float
    after: float
    before_stderr: float
    after_stderr: float
    before_unparsed: float
    after_unparsed: float

    @property
    def change(self) -> float:
        """The gain."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class PairedSample:
    """The same question answered before and after."""

    prompt: str
    target: str
    before: str
    after: str
    before_score: float
    after_score: float


def read_results(folder: Path) -> dict[str, Any]:
    """An evaluation's results.json.

    Raises:
        UserError: there is none.
    """
    results: dict[str, Any] = read_json(folder / "results.json")
    return results


def task_changes(before: dict[str, Any], after: dict[str, Any]) -> list[TaskChange]:
    """The tasks both evaluations have, in order.

    Raises:
        UserError: a task was scored on other rows or under another protocol.
    """
    changes = []
    for name, old in before["tasks"].items():
        new = after["tasks"].get(name)
        if new is None:
            continue
        for what in ("dataset", "protocol", "n"):
            if old[what] != new[what]:
                raise UserError(f"task {name}: the two evaluations differ in {what}, so their scores do not compare")
        changes.append(
            TaskChange(
                name,
                old["modality"],
                old["n"],
                *(old["score"], new["score"]),
                *(old["stderr"], new["stderr"]),
                *(old["unparsed"], new["unparsed"]),
            )
        )
    return changes


def paired_samples(before: Path, after: Path, task: str) -> Iterator[PairedSample]:
    """A task's samples of two evaluations, matched by id."""
    answered = {row["id"]: row for row in _samples(after, task)}
    for old in _samples(before, task):
        if (new := answered.get(old["id"])) is not None:
            yield PairedSample(
                old["prompt"],
                str(old["target"]),
                old["response"],
                new["response"],
                old["score"],
                new["score"],
            )


def read_metrics(run: Path) -> list[dict[str, float]]:
    """A run's metrics.csv, one dict a row, empty cells left out; [] where there is none."""
    file = run / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def _samples(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    file = folder / "samples" / f"{task}.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: missing; run the evaluation again")
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
