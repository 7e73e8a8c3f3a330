"""Readers of the output files of runs and evaluations: results, samples and logged metrics."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from mmtune.common.errors import UserError, brief
from mmtune.common.files import parse_json, read_json
from mmtune.common.schema import Natural, Number, Share, validate

MODALITIES = ("language", "vision")
# fields that must be equal for two scores of a task to be comparable, each with what a difference means
_COMPARABLE = {
    "dataset.fingerprint": "they were scored on different rows, or on more of them",
    "version": "the task file was changed between them",
    "protocol": "their questions were worded by different rules",
    "answering": "their answers were found in different ways",
    "thinking_budget": "one thought before it answered, or longer",
    "metric": "their scores are different measures",
    "n": "one was scored on more rows",
}
_LONGEST_LINE = 2**26  # characters of a sample
_AGAIN = "run the evaluation again"


@dataclass(frozen=True, slots=True)
class _TaskScores:
    """Required fields of a task in `results.json`."""

    modality: str
    version: Natural
    n: Natural
    metric: str
    score: Share
    stderr: Number
    unparsed: Share
    protocol: str
    dataset: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Results:
    """Required fields of `results.json`."""

    tasks: dict[str, _TaskScores]


@dataclass(frozen=True, slots=True)
class TaskChange:
    """Scores of one task before and after training, as shares from 0 to 1."""

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
        """Score after training minus score before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Sample:
    """One question with a model's response and its score.

    `prediction` is None where the response holds no valid answer. `image` is the SHA-256 of the image's bytes (of
    several images: of their digests), None without an image or where the field is no SHA-256.
    """

    id: int | str
    prompt: str
    response: str
    prediction: str | None
    target: str
    score: Share
    image: Annotated[str | None, BeforeValidator(_digest)] = None

    @property
    def more(self) -> str:
        """Raw response where it differs from the prediction in more than case, spaces and punctuation; else empty."""

        def words(text: str) -> str:
            return "".join(c for c in text.casefold() if c.isalnum())

        same = self.prediction is not None and words(self.prediction) == words(self.response)
        return "" if same else self.response


@dataclass(frozen=True, slots=True)
class Answers:
    """Samples of a file by id, in the order of the file."""

    file: Path
    samples: dict[int | str, Sample]


@dataclass(frozen=True, slots=True)
class PairedSample:
    """Same question answered before and after training, or by a baseline and by another model."""

    before: Sample
    after: Sample

    @property
    def change(self) -> float:
        """Score after minus score before."""
        return self.after.score - self.before.score


def read_results(folder: Path) -> dict[str, Any]:
    """Read and check the results.json of an evaluation.

    Raises:
        UserError: it is missing or damaged, lacks a required field, or has a task name that is not a file name.
    """
    file = folder / "results.json"
    results: dict[str, Any] = read_json(file)
    validate(_Results, results, str(file), extra="ignore", remedy=_AGAIN)
    for name in results["tasks"]:
        if not name or set(name) & set("/\\\0"):  # the name becomes a file in samples/, and must not lead elsewhere
            raise UserError(f"{file}: task {name!r}: not a name that mmtune eval writes; {_AGAIN}")
    return results


def difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first field, with both values, that makes two results incomparable, and what it means; else None."""
    for field, meaning in _COMPARABLE.items():
        first, second = (_look_up(task, field) for task in (old, new))
        if first != second:
            return f"{field} ({_short(first)} and {_short(second)})", meaning
    return None


def task_changes(before: dict[str, Any], after: dict[str, Any]) -> list[TaskChange]:
    """Return the changes of the tasks that both evaluations have, in the order of `before`.

    Raises:
        UserError: the two scores of a task are not comparable, such as on other rows or under another protocol.
    """
    changes = []
    for name, old in before["tasks"].items():
        new = after["tasks"].get(name)
        if new is None:
            continue
        if found := difference(old, new):
            raise UserError(f"task {name!r}: the two evaluations differ in {found[0]}: {found[1]}")
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


def read_answers(folder: Path, task: str) -> Answers:
    """Read the samples of a task.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = folder / "samples" / f"{task}.jsonl"
    samples: dict[int | str, Sample] = {}
    number = 0
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE + 1), ""), 1):
                if len(line) > _LONGEST_LINE:
                    raise UserError(f"{file}, line {number}: longer than any sample; {_AGAIN}")
                where = f"{file}, line {number}"
                sample = validate(Sample, parse_json(line), where, extra="ignore", remedy=_AGAIN)
                if sample.id in samples:
                    raise UserError(f"{where}: a second sample {sample.id!r}; {_AGAIN}")
                samples[sample.id] = sample
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {_AGAIN}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{file}, after line {number}: damaged ({error}); {_AGAIN}") from None
    return Answers(file, samples)


def pair(before: Answers, after: Answers) -> list[PairedSample]:
    """Match two models' samples by id, in the order of the first.

    Raises:
        UserError: the two do not hold the same ids, prompts and targets.
    """
    files = f"{before.file} and {after.file}: not the same samples"
    for one, other in ((before, after), (after, before)):
        if missing := [key for key in one.samples if key not in other.samples]:
            raise UserError(f"{files}: {other.file} lacks {len(missing)}, the first of them id {missing[0]!r}")
    pairs = [PairedSample(old, after.samples[key]) for key, old in before.samples.items()]
    for one_pair in pairs:
        for field in ("target", "prompt"):
            if getattr(one_pair.before, field) != getattr(one_pair.after, field):
                raise UserError(f"{files}: id {one_pair.before.id!r} has another {field}")
    return pairs


def paired_samples(before: Path, after: Path, task: str) -> list[PairedSample]:
    """Read a task's samples of two evaluations, matched by id, in the order of the first.

    Raises:
        UserError: a file is missing or damaged, or the two do not hold the same ids, prompts and targets.
    """
    return pair(read_answers(before, task), read_answers(after, task))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the metrics.csv of a run, one dict per row without empty cells; [] where the file is missing.

    Raises:
        UserError: it is damaged.
    """
    file = run / "metrics.csv"
    if not file.is_file():
        return []
    rows: list[dict[str, float]] = []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                found = {k: float(v) for k, v in row.items() if v}
                int(found.get("step", 0))
                rows.append(found)
    except (csv.Error, ValueError, TypeError, OverflowError) as error:  # no number, or too many cells
        problem = f"damaged ({brief(str(error))}); delete it to do without the losses"
        raise UserError(f"{file}, row {len(rows) + 1}: {problem}") from None
    return rows


def _digest(image: Any) -> str | None:
    """Return a SHA-256 in hex digits, or None for any other value: the digest names a file."""
    return image if isinstance(image, str) and re.fullmatch("[0-9a-f]{64}", image) else None


def _look_up(task: dict[str, Any], field: str) -> Any:
    if field == "dataset.fingerprint":
        return task["dataset"].get("fingerprint")
    # older evaluations lack these fields: they generated answers, without thinking
    return task.get(field, {"answering": "generate", "thinking_budget": 0}.get(field))


def _short(value: Any) -> str:
    """Format a value as ASCII JSON for the terminal; above 20 characters, 16 are kept, with an ellipsis."""
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:16]}…"
