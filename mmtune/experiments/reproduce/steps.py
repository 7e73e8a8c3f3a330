"""Folder of a reproduction: its recorded settings and inputs, and the commands that produce its contents."""

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
    """Command of mmtune that produces the contents of a folder.

    Attributes:
        title: title shown to the user.
        arguments: arguments of the command.
        results: files and folders that exist when the command is done.
        tasks: for an evaluation, the tasks that have scores when it is done.
    """

    title: str
    arguments: list[str]
    results: list[Path]
    tasks: tuple[str, ...] = ()

    def done(self) -> bool:
        """Return whether the command has finished.

        Raises:
            UserError: the file of the scores is damaged.
        """
        if not all(path.exists() for path in self.results):
            return False
        return not self.tasks or set(self.tasks) <= set(read_results(self.results[0].parent)["tasks"])


@dataclass
class Comparison:
    """Comparison of the variants of a preset, in one output folder.

    Attributes:
        name: name of the preset.
        preset: the preset, with the sizes that the user chose.
        out: output folder.
        seeds: seeds; every variant is trained with each.
        data_root: folder of the data, or None.
        given_base: aligned model to start from, or None to train one.
    """

    name: str
    preset: Preset
    out: Path
    seeds: list[int]
    data_root: str | None
    given_base: str | None

    def claim(self) -> None:
        """Check that the output folder is blank or holds this comparison, lock it, and write its record and questions.

        Seeds recorded before are added to `seeds`.

        Raises:
            UserError: the folder holds a comparison with other settings or inputs, or something else; another process
                uses it, a link in it leads out of it, or it is not writable; a data file is missing.
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
            seen: evaluation sets with rows or images in the training data, or not compared with it, each with the
                reason.
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
        """Path of the file that lists the training rows which are also in an evaluation set."""
        return self.out / "unseen.json"

    @property
    def base(self) -> str:
        """Aligned model that every variant is tuned from."""
        return self.given_base or str(self.out / BASE)

    @property
    def image_root(self) -> str:
        """Folder of the images."""
        return self._in_root(self.preset.image_root)

    def runs(self) -> Iterator[tuple[int, str, Path]]:
        """Yield seed, variant and run directory of each tuning run."""
        for seed in self.seeds:
            for variant in VARIANTS:
                yield seed, variant, self.out / f"seed-{seed}" / variant

    def sources(self) -> list[str]:
        """Return the training files of the variants, and those of the alignment where the preset names them."""
        found = self._paths([*self.preset.captions, *self.preset.text, *self.preset.visual])
        return [*dict.fromkeys(found), *self._made()]

    def steps(self) -> list[Step]:
        """Return all commands, in their order."""
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
        """Return the flags of `fit` that train the base model, without `--out`."""
        preset, flags = self.preset, ["--config", self.preset.align]
        if preset.captions:
            flags += ["--data.train.visual", _listed(self._paths(preset.captions))]
            flags += ["--data.train.image_root", self.image_root]
        if preset.align_steps:
            flags += ["--trainer.max_steps", str(preset.align_steps)]
        return flags

    def tuning(self, seed: int, variant: str) -> list[str]:
        """Return the flags of `fit` that train a variant, without `--out` and the base model."""
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
        """Return the settings that later calls for the same folder must repeat, with lists for tuples as in JSON."""
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
        """SHA-256 of the files, configs, tasks and base model that the steps use, by name."""
        preset = self.preset
        files = [file for file in self._files() if file != self.image_root]
        return inputs_of(files, (preset.align, preset.tune), preset.suite, self.data_root, self.given_base)

    def _check_inputs(self, before: dict[str, str]) -> None:
        """Raise UserError if inputs have changed: finished steps would be kept, although they used the old inputs."""
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
