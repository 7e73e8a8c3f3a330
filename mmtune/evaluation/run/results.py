"""What an evaluation finds: samples, the scores of a task, the scores of a suite."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmtune.common.version import __version__
from mmtune.evaluation.run.load_model import COSTS


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and what became of it.

    Attributes:
        id: the row's number in the split, from 0.
        prompt: what the user said; the task's response_prefix and the chat template are not part of it.
        response: the model's raw text after the response_prefix, with its thought before it where it was to think; by
            likelihood, the text of the likeliest choice.
        prediction: the answer found in it, or None (unparsed, or the photo could not be decoded).
        target: the gold answer.
        score: how good the answer is, 0 to 1.
        image: SHA-256 of the photo's bytes (of several: of their digests), or None.
        group: the row's group in the set, or None.
        error: why it could not be asked or judged, or None.
        finish_reason: why a generated answer ended: `stop`, `length` (at the most tokens it may have) or `window`
            (where the model can read no further); None where choices were compared, or the model does not tell.
        loglikelihoods: of each choice, the summed natural log-probability of its tokens; None for a blank choice or
            where that is no finite number. None instead of the list where an answer was generated.
        details: what else the verifier says of the answer, by name; None where it says nothing.
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
    loglikelihoods: tuple[float | None, ...] | None = None
    finish_reason: str | None = None
    details: Mapping[str, Any] | None = None


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
        failed: how many samples have an error: a photo that could not be decoded, or a verifier without a judgment.
        shortened: of how many the prompt was shortened to fit into the model's window.
        metrics: all metrics, over all samples and by group; None for one that gives no number.
        dataset: path, config, split, fingerprint.
        protocol: blind or mlan.
        answering: generate, likelihood or likelihood_norm.
        thinking_budget: that a thought before the answer may have; 0 for answers at once.
        seconds: that the model took to answer, added up where several processes share the work.
        cost: seconds and the model's counts for this task.
        key: changes with all that the scores depend on: model, task, protocol, rows, limit, seed.
    """

    modality: str
    version: int
    n: int
    metric: str
    score: float
    stderr: float
    unparsed: float
    failed: int
    shortened: int
    metrics: dict[str, Any]
    dataset: dict[str, str | None]
    protocol: str
    answering: str
    thinking_budget: int
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
        template_date: what the chat template writes for the day's date; None where it writes none.
    """

    suite: str
    model: str
    created: str
    versions: dict[str, str]
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    template_date: str | None = None

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
        """The tasks' costs added up, those of answers taken over too: what these scores took to compute."""
        return {key: sum(task.cost[key] for task in self.tasks.values()) for key in COSTS}

    def as_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "suite": self.suite,
            "model": self.model,
            "created": self.created,
            "versions": self.versions,
            "template_date": self.template_date,
            "tasks": {name: dataclasses.asdict(task) for name, task in self.tasks.items()},
            "averages": self.averages,
            "cost": self.cost,
        }


def versions() -> dict[str, str]:
    """The versions that results may depend on."""
    found = {"mmtune": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "datasets", "pyarrow", "jinja2", "pillow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
