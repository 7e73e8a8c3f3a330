"""An evaluation's folder: `answers.sqlite` as they come in; `results.json`, `samples/`, `thumbnails/` after a task."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path, check_links, claim_folder, read_json
from mmtune.common.schema import fits
from mmtune.evaluation.run.results import Results, Sample, TaskResult
from mmtune.evaluation.run.thumbnails import keep_thumbnails
from mmtune.evaluation.tasks.render import Question

# half of a character, which UTF-8 cannot write; and what would break a line or command a terminal that shows the file
_AWKWARD = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Store:
    """The files of an evaluation, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made, or not be written to, or a link in it leads elsewhere.
        """
        self.folder = folder
        check_links(folder, "--out", ["answers.sqlite*", "samples", "thumbnails"])
        claim_folder(folder, "--out")
        claim_folder(folder / "samples", "--out")

    @property
    def results_path(self) -> Path:
        """The file of the scores."""
        return self.folder / "results.json"

    @property
    def answers_path(self) -> Path:
        """The database of the answers."""
        return self.folder / "answers.sqlite"

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
        return {name: TaskResult(**task) for name, task in tasks.items() if fits(TaskResult, task)}

    def write(self, results: Results, task: str) -> None:
        """Write a finished task: its samples first, so that results never lack them.

        Raises:
            UserError: the disk is full, or does not let us write.
        """
        lines = (_json(dataclasses.asdict(sample)) for sample in results.samples[task])
        self._write(self.samples_path(task), lines)
        self._write(self.results_path, [_json(results.as_dict(), indent=2)])

    def keep_thumbnails(self, task: str, questions: Sequence[Question], samples: Sequence[Sample]) -> None:
        """Keep small copies of a task's photos, for reports.

        Raises:
            UserError: the disk is full, or does not let us write.
        """
        path = self.folder / "thumbnails" / f"{task}.zip"
        with _explained(path):
            keep_thumbnails(path, questions, samples)

    def _write(self, path: Path, lines: Iterator[str] | list[str]) -> None:
        with _explained(path), atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _AWKWARD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "the answers are kept: run the same command again, and it goes on where it stopped"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space; {kept}") from None
        raise UserError(f"{path}: cannot be written: {error.strerror}; {kept}") from None
