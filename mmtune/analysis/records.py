"""What runs and evaluations left behind, read back: results, samples, ledgers and logged metrics."""

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
# what must be the same for two scores of a task to compare, and what it means if it is not
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
    """What is needed of a task in `results.json`."""

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
    """What is needed of `results.json`."""

    tasks: dict[str, _TaskScores]


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
class Sample:
    """One question and what a model made of it.

    `prediction` is None where no valid answer was found; `image` stands for the photo's bytes, None without a photo.
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
        """The raw response where it says more than the prediction, apart from case and punctuation; else nothing."""

        def words(text: str) -> str:
            return "".join(c for c in text.casefold() if c.isalnum())

        same = self.prediction is not None and words(self.prediction) == words(self.response)
        return "" if same else self.response


@dataclass(frozen=True, slots=True)
class Answers:
    """A file of samples, by id in the file's order."""

    file: Path
    samples: dict[int | str, Sample]


@dataclass(frozen=True, slots=True)
class PairedSample:
    """The same question answered before and after, or by a baseline and by another model."""

    before: Sample
    after: Sample

    @property
    def change(self) -> float:
        """The gain in score."""
        return self.after.score - self.before.score


def read_results(folder: Path) -> dict[str, Any]:
    """An evaluation's results.json.

    Raises:
        UserError: there is none, or it lacks what a comparison needs.
    """
    file = folder / "results.json"
    results: dict[str, Any] = read_json(file)
    validate(_Results, results, str(file), extra="ignore", remedy=_AGAIN)
    for name in results["tasks"]:
        if not name or set(name) & set("/\\\0"):  # it names a file in samples/, and none elsewhere
            raise UserError(f"{file}: task {name!r}: not a name that mmtune eval writes; {_AGAIN}")
    return results


def difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str] | None:
    """Why two results of a task do not compare: what differs, with both values, and what that means; or None."""
    for field, meaning in _COMPARABLE.items():
        first, second = (_look_up(task, field) for task in (old, new))
        if first != second:
            return f"{field} ({_short(first)} and {_short(second)})", meaning
    return None


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
    """A task's samples.

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
    except ValueError as error:  # neither JSON nor, it may be, UTF-8
        raise UserError(f"{file}, after line {number}: damaged ({error}); {_AGAIN}") from None
    return Answers(file, samples)


def pair(before: Answers, after: Answers) -> list[PairedSample]:
    """Two models' samples matched by id, in the first one's order.

    Raises:
        UserError: they do not hold the same questions.
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
    """A task's samples of two evaluations, matched by id, in the first one's order.

    Raises:
        UserError: a file is missing or damaged, or the two do not hold the same questions.
    """
    return pair(read_answers(before, task), read_answers(after, task))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """A run's metrics.csv, one dict a row, empty cells left out; [] where there is none.

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
    except (csv.Error, ValueError, TypeError, OverflowError) as error:  # a cell that is no number, or one too many
        problem = f"damaged ({brief(str(error))}); delete it to do without the losses"
        raise UserError(f"{file}, row {len(rows) + 1}: {problem}") from None
    return rows


def _digest(image: Any) -> str | None:
    """A photo's digest, or None for what is none: it names a file."""
    return image if isinstance(image, str) and re.fullmatch("[0-9a-f]{64}", image) else None


def _look_up(task: dict[str, Any], field: str) -> Any:
    if field == "dataset.fingerprint":
        return task["dataset"].get("fingerprint")
    # evaluations from before there was a choice generated their answers, at once
    return task.get(field, {"answering": "generate", "thinking_budget": 0}.get(field))


def _short(value: Any) -> str:
    """A value in ASCII, cut: it may come from anywhere and goes to the terminal."""
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:16]}…"
