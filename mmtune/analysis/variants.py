"""Variants of a report: each is one way of training a model, run once or with several seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.analysis.compare import find_evaluation
from mmtune.analysis.planned_runs import RECORD, PlannedVariant, read_plan
from mmtune.analysis.records import read_metrics, read_results
from mmtune.analysis.runs import read_config, read_ledger, run_of
from mmtune.common.errors import UserError

_SEED_KEYS = ("seed", "model.seed", "seed_everything", "data.train.seed")


@dataclass(frozen=True)
class TrainedRun:
    """Evaluated model, with the run that trained it.

    Attributes:
        evaluation: the folder with results.json and samples/.
        results: content of results.json.
        run: the run directory; None for a model without a run, or where the run is not found.
        ledger: content of the run's ledger.json; None without a run or without the file.
        seed: seed of the run; None where it is not known.
    """

    evaluation: Path
    results: dict[str, Any]
    run: Path | None = None
    ledger: dict[str, Any] | None = None
    seed: int | None = None

    @classmethod
    def read(cls, evaluation: Path, run: Path | None = None, seed: int | None = None) -> TrainedRun:
        """Read an evaluation, and the ledger of the run that trained its model.

        Args:
            evaluation: a folder with results.json.
            run: the run directory; None to search for it.
            seed: seed of the run; None to read it from the run's configuration.

        Raises:
            UserError: a file is missing or damaged.
        """
        results = read_results(evaluation)
        run = run_of(evaluation, str(results.get("model", ""))) if run is None else run
        ledger = None if run is None else read_ledger(run)
        if seed is None and run is not None:
            settings = read_config(run)
            seed = next((int(settings[key]) for key in _SEED_KEYS if isinstance(settings.get(key), int)), None)
        return cls(evaluation, results, run, ledger, seed)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the run by dotted key; {} without a run or without its config.yaml."""
        return {} if self.run is None else read_config(self.run)

    @property
    def aligned_only(self) -> bool:
        """Whether the run only aligned the projector, as for the base of the tuned variants."""
        return self.config.get("model.stage") == "align"

    @functools.cached_property
    def losses(self) -> list[tuple[int, float]]:
        """Logged training losses, as pairs of step and loss; [] where none are logged."""
        rows = [] if self.run is None else read_metrics(self.run)
        return [(int(row["step"]), row["train_loss"]) for row in rows if "step" in row and "train_loss" in row]


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in their seed.

    Attributes:
        name: name in the report.
        runs: finished runs.
        unfinished: folders of planned runs that are not finished.
        seen: tasks with rows or images in the training data of a variant, or not compared with it, each with the
            reason.
    """

    name: str
    runs: list[TrainedRun]
    unfinished: tuple[str, ...] = ()
    seen: Mapping[str, str] = field(default_factory=dict)


def read_variants(paths: Sequence[str | Path]) -> list[Variant]:
    """Read the variants that paths stand for.

    A path is a run directory with one evaluation in it or below it, an evaluation's folder, or a folder with
    `reproduce.json`, which expands to its variants. `LABEL=PATH` names the variant; paths with the same
    label are its seeds. Without a label, the variant's name is that of its folder, or the whole path where two folders
    have the same name.

    Raises:
        UserError: there are no paths; a path holds no evaluation, or several; a file is missing or damaged; an
            evaluation is given twice; a folder with `reproduce.json` has a label or no finished run.
    """
    if not paths:
        raise UserError("give one run or more: folders that mmtune fit or mmtune eval wrote")
    given = [_labelled(str(path)) for path in paths]
    names = [path.name or str(path) for label, path in given if label is None]
    variants: dict[str, Variant] = {}
    known: dict[Path, str] = {}
    for label, path in given:
        name = label or (str(path) if names.count(path.name) > 1 else path.name or str(path))
        found = _planned(path, label) if (path / RECORD).is_file() else [Variant(name, [_read_run(path)])]
        for variant in found:
            for run in variant.runs:
                place = run.evaluation.resolve()
                if place in known:
                    raise UserError(
                        f"{path}: {run.evaluation} is given twice, in {known[place]!r} and {variant.name!r}"
                    )
                known[place] = variant.name
            variants[variant.name] = _joined(variants[variant.name], variant) if variant.name in variants else variant
    return list(variants.values())


def _labelled(text: str) -> tuple[str | None, Path]:
    """Split `LABEL=PATH`; an existing path that contains an equals sign has no label."""
    label, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not label.strip() or not path:
        raise UserError(f"{text}: write LABEL=RUN, with a label and a folder")
    return label.strip(), Path(path)


def _read_run(path: Path) -> TrainedRun:
    return TrainedRun.read(find_evaluation(path))


def _planned(folder: Path, label: str | None) -> list[Variant]:
    """Read the variants of a folder with `reproduce.json`."""
    file = folder / RECORD
    if label is not None:
        raise UserError(f"{label}={folder}: {file} names its variants itself; give {folder} without a label")
    plan = read_plan(folder)
    variants = [_planned_variant(folder, variant, plan.seen) for variant in plan.variants]
    if not any(variant.runs for variant in variants):
        raise UserError(f"{file}: no run of it is finished yet; go on with mmtune reproduce --out {folder}")
    return variants


def _planned_variant(folder: Path, variant: PlannedVariant, seen: Mapping[str, str]) -> Variant:
    runs, unfinished = [], []
    for one in variant.runs:
        evaluation = folder / one.evaluation
        run = None if one.run is None else folder / one.run
        if (evaluation / "results.json").is_file() and (run is None or (run / "ledger.json").is_file()):
            runs.append(TrainedRun.read(evaluation, run, one.seed))
        else:
            unfinished.append(one.run or one.evaluation)
    return Variant(variant.name, runs, tuple(unfinished), seen)


def _joined(one: Variant, other: Variant) -> Variant:
    runs, unfinished = one.runs + other.runs, one.unfinished + other.unfinished
    return Variant(one.name, runs, unfinished, {**one.seen, **other.seen})
