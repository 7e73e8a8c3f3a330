"""The folder of a comparison: its settings, and the commands that fill it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmtune.analysis.planned_runs import RECORD, Plan, PlannedRun, PlannedVariant, read_plan
from mmtune.analysis.records import read_results
from mmtune.common.errors import UserError
from mmtune.common.files import check_links, hold_folder, is_blank, write_json
from mmtune.evaluation.tasks.suite import load_suite
from mmtune.experiments.recorded_inputs import changed, inputs_of
from mmtune.experiments.reproduce.data import object_questions
from mmtune.experiments.reproduce.presets import BASE, VARIANTS, Preset


@dataclass(frozen=True)
class Step:
    """A command of mmtune that makes a folder's contents.

    Attributes:
        title: for people.
        arguments: of the command.
        results: what is there when it is done.
        tasks: of an evaluation, those whose scores are there when it is done.
    """

    title: str
    arguments: list[str]
    results: list[Path]
    tasks: tuple[str, ...] = ()

    def done(self) -> bool:
        """Whether it was run to its end.

        Raises:
            UserError: the scores are damaged.
        """
        if not all(path.exists() for path in self.results):
            return False
        return not self.tasks or set(self.tasks) <= set(read_results(self.results[0].parent)["tasks"])


@dataclass
class Comparison:
    """What is compared, and where.

    Attributes:
        name: the preset's.
        preset: at the size that was asked for.
        out: the folder for all of it.
        seeds: every variant is trained with each.
        data_root: where data lies, or None.
        given_base: an aligned model to begin with, or None to make one.
    """

    name: str
    preset: Preset
    out: Path
    seeds: list[int]
    data_root: str | None
    given_base: str | None

    def claim(self) -> None:
        """Make sure that what lies in the folder is this comparison; write down what it is, and its questions.

        Raises:
            UserError: it is another one, or something else, or data is missing.
        """
        before = None
        if (self.out / RECORD).is_file():
            before = read_plan(self.out)
            self._check_same(before.settings)
            self._check_inputs(before.inputs)
            self.seeds = sorted({*before.seeds, *self.seeds})
        elif not is_blank(self.out):
            raise UserError(f"--out {self.out}: exists and is no comparison of mmtune reproduce; choose another folder")
        missing = [file for file in self._files() if not Path(file).exists()]
        if missing:
            raise UserError(f"{missing[0]}: no such file; docs/reproduction.md says what the data is and where it lies")
        check_links(self.out, "--out", ["*"])
        hold_folder(self.out, "--out")
        self.write(before.seen if before else {})
        if self.preset.objects and not self._questions.is_file():
            write_json(self._questions, object_questions(Path(self._in_root(self.preset.objects))))

    def write(self, seen: dict[str, str]) -> None:
        """Write `reproduce.json`, which `mmtune report` reads.

        Args:
            seen: sets that are not unseen, and why.
        """
        variants = {BASE: [(None, BASE)]} | {
            variant: [(seed, f"seed-{seed}/{variant}") for seed in self.seeds] for variant in VARIANTS
        }
        made = [
            PlannedVariant(name, [self._entry(seed, folder) for seed, folder in runs])
            for name, runs in variants.items()
        ]
        plan = Plan(settings=self._settings(), inputs=self._inputs, seeds=self.seeds, variants=made, seen=seen)
        write_json(self.out / RECORD, asdict(plan))

    @property
    def check(self) -> Path:
        """The file that names training rows which an evaluation set holds too."""
        return self.out / "unseen.json"

    @property
    def base(self) -> str:
        """The aligned model that every variant begins with."""
        return self.given_base or str(self.out / BASE)

    @property
    def image_root(self) -> str:
        """The folder of the photos."""
        return self._in_root(self.preset.image_root)

    def runs(self) -> Iterator[tuple[int, str, Path]]:
        """Seed, variant and run directory of everything that is trained from the base."""
        for seed in self.seeds:
            for variant in VARIANTS:
                yield seed, variant, self.out / f"seed-{seed}" / variant

    def sources(self) -> list[str]:
        """The files that variants are trained on, and those of the base where the preset names them."""
        found = self._paths([*self.preset.captions, *self.preset.text, *self.preset.visual])
        return [*dict.fromkeys(found), *self._made()]

    def steps(self) -> list[Step]:
        """All commands, in their order."""
        steps = []
        if self.given_base is None:
            steps.append(self._training("the base model: alignment", self.out / BASE, self.alignment()))
        steps.append(self._evaluation("the base model", self.base, self.out / BASE / "eval"))
        for seed, variant, run in self.runs():
            flags = [*self.tuning(seed, variant), "--model.base", self.base]
            steps.append(self._training(f"seed {seed}, {variant}: training", run, flags))
            steps.append(self._evaluation(f"seed {seed}, {variant}", str(run), run / "eval"))
        return steps

    def alignment(self) -> list[str]:
        """The flags of `fit` that make the base model, but for `--out`."""
        preset, flags = self.preset, ["--config", self.preset.align]
        if preset.captions:
            flags += ["--data.train.visual", _listed(self._paths(preset.captions))]
            flags += ["--data.train.image_root", self.image_root]
        if preset.align_steps:
            flags += ["--trainer.max_steps", str(preset.align_steps)]
        return flags

    def tuning(self, seed: int, variant: str) -> list[str]:
        """The flags of `fit` that make a variant, but for `--out` and the base model."""
        preset, fraction = self.preset, VARIANTS[variant]
        text = self._paths(preset.text) if fraction > 0 else []
        visual = [*self._paths(preset.visual), *self._made()] if fraction < 1 else []
        values = {
            "config": preset.tune,
            "seed_everything": seed,
            "model.seed": seed,
            "data.train.seed": seed,
            "data.train.text": _listed(text),
            "data.train.visual": _listed(visual),
            "data.train.image_root": self.image_root,
            "data.train.text_fraction": fraction,
            "data.train.total": preset.samples,
        }
        return [part for flag, value in values.items() for part in (f"--{flag}", str(value))]

    def _training(self, title: str, run: Path, flags: list[str]) -> Step:
        check = ["--data.train.leave_out", str(self.check), "--unseen", self.preset.suite]
        check += ["--unseen_data_root", self.data_root] if self.data_root else []
        return Step(title, ["fit", *flags, *check, "--out", str(run)], [run / "model", run / "ledger.json"])

    def _evaluation(self, title: str, model: str, out: Path) -> Step:
        arguments = ["eval", "--model", model, "--suite", self.preset.suite, "--out", str(out)]
        arguments += ["--limit", str(self.preset.limit)] if self.preset.limit else []
        arguments += ["--data-root", self.data_root] if self.data_root else []
        tasks = tuple(task.name for task in load_suite(self.preset.suite).tasks)
        return Step(f"{title}: evaluation", arguments, [out / "results.json"], tasks)

    def _entry(self, seed: int | None, folder: str) -> PlannedRun:
        return PlannedRun(seed, None if folder == BASE and self.given_base else folder, f"{folder}/eval")

    def _settings(self) -> dict[str, Any]:
        """What must be the same when a comparison goes on, as JSON gives it back."""
        settings = {"preset": self.name, "base": self.given_base} | asdict(self.preset)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

    def _check_same(self, before: dict[str, Any]) -> None:
        changed = [f"{k} {before.get(k)} then, {v} now" for k, v in self._settings().items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"--out {self.out}: holds another comparison ({'; '.join(changed)}); choose another folder, or give "
                "the flags that it was begun with"
            )

    @functools.cached_property
    def _inputs(self) -> dict[str, str]:
        """The content that all steps are made of."""
        preset = self.preset
        files = [file for file in self._files() if file != self.image_root]
        return inputs_of(files, (preset.align, preset.tune), preset.suite, self.data_root, self.given_base)

    def _check_inputs(self, before: dict[str, str]) -> None:
        """Refuse to go on with other content: what is done already would be taken over, and it is of the old one."""
        if before and (names := changed(before, self._inputs)):
            raise UserError(
                f"--out {self.out}: was begun with other content of {names}; put back what it was, or choose another "
                "folder"
            )

    def _files(self) -> list[str]:
        named = self._paths([*self.preset.captions, *self.preset.text, *self.preset.visual, self.preset.image_root])
        return [*named, *([self._in_root(self.preset.objects)] if self.preset.objects else [])]

    @property
    def _questions(self) -> Path:
        return self.out / "data" / "object_questions.json"

    def _made(self) -> list[str]:
        return [str(self._questions)] if self.preset.objects else []

    def _paths(self, files: Iterable[str]) -> list[str]:
        return [self._in_root(file) for file in files]

    def _in_root(self, file: str) -> str:
        if not self.preset.below_data_root:
            return file
        if self.data_root is None:
            raise UserError(
                f"--data-root: missing; the preset {self.name} takes its rows from there (docs/reproduction.md)"
            )
        return str(Path(self.data_root) / file)


def _listed(files: list[str]) -> str:
    return json.dumps(files)
