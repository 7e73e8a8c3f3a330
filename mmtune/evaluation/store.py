"""What an evaluation leaves: `results.json` and `samples/<task>.jsonl`, written whole or not at all."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune import __version__
from mmtune.errors import UserError
from mmtune.evaluation.protocol import USAGE
from mmtune.files import atomic_path, read_json, write_json


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and what became of it.

    Attributes:
        id: the row's number in the split, from 0.
        prompt: what the user said; the task's primer and the chat template are not part of it.
        response: the model's raw text after the primer.
        prediction: the answer found in it, or None (unparsed, or the photo could not be decoded).
        target: the gold answer.
        score: 0 or 1.
        image: SHA-256 of the photo's bytes (of several: of their digests), or None.
        group: the row's group in the set, or None.
        error: why it could not be asked, or None.
    """

    id: int
    prompt: str
    response: str
    prediction: str | None
    target: str
    score: float
    image: str | None
    group: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of one task and what they cost; every field stands in `results.json`.

    Attributes:
        modality: language or vision.
        version: of the task file.
        n: how many samples.
        metric: the name of the task's score.
        score: 0 to 1.
        stderr: bootstrap standard error of the score.
        unparsed: the share of samples without a valid answer, undecodable photos among them.
        failed: how many samples had a photo that could not be decoded.
        metrics: all metrics, over all samples and by group.
        dataset: path, config, split, fingerprint.
        protocol: blind or mlan.
        seconds: wall clock.
        cost: seconds and the model's counts for this task.
        key: changes with all that the samples depend on: model, task, protocol, rows, limit, seed.
    """

    modality: str
    version: int
    n: int
    metric: str
    score: float
    stderr: float
    unparsed: float
    failed: int
    metrics: dict[str, Any]
    dataset: dict[str, str | None]
    protocol: str
    seconds: float
    cost: dict[str, float]
    key: str


@dataclass
class Results:
    """The scores of a suite.

    Attributes:
        suite: its name.
        model: the model's name.
        created: when, ISO 8601 in UTC.
        versions: of mmtune, Python and the libraries that matter.
        tasks: by name, in the suite's order.
        samples: of the tasks asked for, by name, in the order of the rows.
    """

    suite: str
    model: str
    created: str
    versions: dict[str, str]
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    @property
    def averages(self) -> dict[str, float | None]:
        """Unweighted means of the scores: language, vision, overall; None where there is no such task."""

        def mean(scores: list[float]) -> float | None:
            return sum(scores) / len(scores) if scores else None

        tasks = self.tasks.values()
        by_modality = {m: mean([t.score for t in tasks if t.modality == m]) for m in ("language", "vision")}
        return {**by_modality, "overall": mean([t.score for t in tasks])}

    @property
    def cost(self) -> dict[str, float]:
        """The tasks' costs added up, those of reused results too: what these scores took to compute."""
        return {key: sum(task.cost[key] for task in self.tasks.values()) for key in ("seconds", *USAGE)}

    def as_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "suite": self.suite,
            "model": self.model,
            "created": self.created,
            "versions": self.versions,
            "tasks": {name: dataclasses.asdict(task) for name, task in self.tasks.items()},
            "averages": self.averages,
            "cost": self.cost,
        }


class Store:
    """An evaluation's folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made.
        """
        self.folder = folder
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be a folder for results: {error.strerror}") from None

    @property
    def results_path(self) -> Path:
        """The file of the scores."""
        return self.folder / "results.json"

    def samples_path(self, task: str) -> Path:
        """The file of a task's samples."""
        return self.folder / "samples" / f"{task}.jsonl"

    def finished(self) -> dict[str, TaskResult]:
        """The tasks that an earlier evaluation finished here; those of another layout are left out.

        Raises:
            UserError: `results.json` is damaged.
        """
        if not self.results_path.is_file():
            return {}
        raw = read_json(self.results_path)
        tasks = raw.get("tasks") if isinstance(raw, dict) else None
        if not isinstance(tasks, dict):
            raise UserError(f"{self.results_path}: holds no results; delete it, or choose another --out")
        wanted = {f.name for f in dataclasses.fields(TaskResult)}
        return {name: TaskResult(**t) for name, t in tasks.items() if isinstance(t, dict) and set(t) == wanted}

    def read_samples(self, task: str) -> list[Sample] | None:
        """A task's samples, or None if the file is missing or not whole."""
        try:
            with self.samples_path(task).open(encoding="utf-8") as stream:
                return [Sample(**json.loads(line)) for line in stream]
        except (OSError, ValueError, TypeError):
            return None

    def write(self, results: Results, task: str) -> None:
        """Write a finished task: its samples first, so that results never lack them."""
        with (
            atomic_path(self.samples_path(task)) as temporary,
            temporary.open("w", encoding="utf-8") as stream,
        ):
            for sample in results.samples[task]:
                stream.write(json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n")
        write_json(self.results_path, results.as_dict())


def versions() -> dict[str, str]:
    """The versions that results may depend on."""
    found = {"mmtune": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "datasets", "pyarrow", "jinja2", "pillow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
