"""A suite: a list of tasks under one protocol. Read from one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.files import find_resource
from mmtune.common.schema import Fields, load_layered
from mmtune.evaluation.tasks.filters import Protocol
from mmtune.evaluation.tasks.task import Task, load_task, task_from

PROTOCOLS = ("blind", "mlan")
# what a suite may not override, and what to use instead
_RESERVED = {
    "name": "`as`",
    "version": "a task file of your own",
    "dataset": "`path`, `config`, `split` or `revision`",
}


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks that are scored together.

    Attributes:
        name: what it is called.
        description: one line on what it is for.
        protocol: whether the gold answer may decide how a question is put (`mlan`) or not (`blind`).
        tasks: in the order they are run.
    """

    name: str
    description: str
    protocol: Protocol
    tasks: tuple[Task, ...]

    def select(self, names: Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks of these names, in the suite's order; None for all.

        Raises:
            UserError: a name is not in the suite, or none is given.
        """
        if names is None:
            return self.tasks
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise UserError(f"--tasks: {name!r} is not in suite {self.name}; {did_you_mean(name, known)}")
        if not names:
            raise UserError(f"--tasks: names no task; choose among: {', '.join(known)}")
        return tuple(task for task in self.tasks if task.name in names)


def load_suite(name: str | Path) -> Suite:
    """Read a suite by the name of a shipped one or by its file; a task's own name or file is a suite of one.

    Raises:
        UserError: there is no such file, or it (or a task file it names) is wrong.
    """
    path = find_resource("eval_suites", str(name))
    raw = load_layered(path)
    if isinstance(raw, dict) and "tasks" not in raw and "prompt" in raw:
        task = task_from(raw, str(path), path.parent)
        return Suite(task.name, f"the task {task.name}", "blind", (task,))
    fields = Fields(raw, str(path))
    suite_name = fields.take("name", str)
    description = fields.take("description", str, "")
    protocol = fields.choice("protocol", PROTOCOLS, "blind")
    entries = fields.take("tasks", list)
    fields.finish()
    if not entries:
        raise fields.error("tasks", "is empty; list at least one task")
    tasks = tuple(_entry(fields, path.parent, entry) for entry in entries)
    names = [task.name for task in tasks]
    for task_name in names:
        if names.count(task_name) > 1:
            raise fields.error("tasks", f"{task_name!r} is listed twice; give one another name with `as`")
    return Suite(suite_name, description, cast(Protocol, protocol), tasks)


def _entry(fields: Fields, folder: Path, entry: Any) -> Task:
    if isinstance(entry, str):
        return load_task(entry, relative_to=folder)
    if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
        raise fields.error("tasks", f"every entry must be a name or {{task: name, …}}, not {entry!r}")
    overrides = {key: value for key, value in entry.items() if key != "task"}
    for key, instead in _RESERVED.items():
        if key in overrides:
            raise fields.error("tasks", f"{entry['task']}: {key!r} cannot be set here; use {instead}")
    if "as" in overrides:
        overrides["name"] = overrides.pop("as")
    return load_task(entry["task"], relative_to=folder, overrides=overrides, overridden_by=fields.where)
