"""A suite: a list of tasks under one protocol. Read from one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import PlainValidator, ValidationInfo

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.common.files import find_resource
from mmtune.common.schema import NullIsAbsent, load_layered, validate
from mmtune.evaluation.tasks.filters import Protocol
from mmtune.evaluation.tasks.task import Task, load_task, task_from

PROTOCOLS = get_args(Protocol)
# what a suite may not override, and what to use instead
_RESERVED = {
    "name": "`as`",
    "version": "a task file of your own",
    "dataset": "`path`, `config`, `split` or `revision`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite(NullIsAbsent):
    """Tasks that are scored together.

    Attributes:
        name: what it is called.
        description: one line on what it is for.
        protocol: whether the gold answer may decide how a question is put (`mlan`) or not (`blind`).
        tasks: in the order they are run.
    """

    name: str
    description: str = ""
    protocol: Protocol = "blind"
    tasks: Annotated[tuple[Task, ...], PlainValidator(_tasks)]

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
        return Suite(name=task.name, description=f"the task {task.name}", tasks=(task,))
    return validate(Suite, raw, str(path), context=path)


def _tasks(value: Any, info: ValidationInfo[Path]) -> tuple[Task, ...]:
    """The tasks that the entries of a suite's file stand for."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {brief(repr(value))}")
    if not value:
        raise ValueError("is empty; list at least one task")
    tasks = tuple(_entry(entry, info.context) for entry in value)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is listed twice; give one another name with `as`")
    return tasks


def _entry(entry: Any, path: Path) -> Task:
    if isinstance(entry, str):
        return load_task(entry, relative_to=path.parent)
    if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
        raise ValueError(f"every entry must be a name or {{task: name, …}}, not {brief(repr(entry))}")
    overrides = {key: value for key, value in entry.items() if key != "task"}
    for key, instead in _RESERVED.items():
        if key in overrides:
            raise ValueError(f"{entry['task']}: {key!r} cannot be set here; use {instead}")
    if "as" in overrides:
        overrides["name"] = overrides.pop("as")
    return load_task(entry["task"], relative_to=path.parent, overrides=overrides, overridden_by=str(path))
