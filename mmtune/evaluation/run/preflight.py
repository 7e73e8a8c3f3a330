"""What can be found wrong with an evaluation before anything is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import cast

from mmtune.common.errors import UserError, did_you_mean
from mmtune.evaluation.score.external import ExternalMetric, load_metric
from mmtune.evaluation.tasks.filters import Protocol
from mmtune.evaluation.tasks.suite import PROTOCOLS, Suite
from mmtune.evaluation.tasks.task import ANSWERING, Answering, Task
from mmtune.interfaces import Generator, capabilities


def check_numbers(*, limit: int | None, batch_tokens: int, thinking_budget: int | None, seed: int) -> None:
    """Look whether the numbers of the flags are large enough.

    Raises:
        UserError: one is not.
    """
    for flag, value, least in (
        ("--limit", limit, 1),
        ("--batch-tokens", batch_tokens, 1),
        ("--thinking-budget", thinking_budget, 0),
        ("--seed", seed, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")


def protocol_named(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--protocol: unknown {name!r}; {did_you_mean(name, PROTOCOLS)}")
    return cast(Protocol, name)


def answered_by(suite: Suite, answering: str | None) -> Suite:
    """The suite with all tasks answered in this way that can be; None leaves each its own.

    Raises:
        UserError: there is no such way.
    """
    if answering is None:
        return suite
    if answering not in ANSWERING:
        raise UserError(f"--answering: unknown {answering!r}; {did_you_mean(answering, ANSWERING)}")
    tasks = (
        dataclasses.replace(task, answering=cast(Answering, answering if task.has_choices else "generate"))
        for task in suite.tasks
    )
    return dataclasses.replace(suite, tasks=tuple(tasks))


def thought_about(suite: Suite, thinking_budget: int | None) -> Suite:
    """The suite with all tasks answered after a thought of at most so many tokens; None leaves each its own."""
    if thinking_budget is None:
        return suite
    tasks = tuple(dataclasses.replace(task, thinking_budget=thinking_budget) for task in suite.tasks)
    return dataclasses.replace(suite, tasks=tasks)


def check_thinking(tasks: Sequence[Task]) -> None:
    """Look whether all tasks that are thought about have an answer written after the thought.

    Raises:
        UserError: a task compares choices, which nobody thinks about.
    """
    compared = [task.name for task in tasks if task.thinking_budget and task.answering != "generate"]
    if compared:
        problem = f"--thinking-budget: the choices of {compared[0]} are compared as they are, before any thought"
        raise UserError(f"{problem}; use --answering generate, or leave out --thinking-budget")


def check_choices(tasks: Sequence[Task], answering: str | None) -> None:
    """Look whether all tasks can be answered in the way that was asked for.

    Raises:
        UserError: a task's answers are free, so that there is nothing to compare.
    """
    free = [task.name for task in tasks if not task.has_choices]
    if answering not in (None, "generate") and free:
        problem = f"the answers of {', '.join(free)} are free, so there are no choices to compare"
        raise UserError(f"--answering {answering}: {problem}; {_advice(tasks, free, 'use --answering generate')}")


def check_model(model: Generator, tasks: Sequence[Task]) -> None:
    """Look whether the model can do what the tasks ask: see, think, and tell how likely choices are.

    A text-only model is told so before hours of language tasks, not after.

    Raises:
        UserError: it cannot.
    """
    able = capabilities(model)
    shown = [task.name for task in tasks if task.images]
    if shown and "images" not in able:
        advice = _advice(tasks, shown, "choose a suite of language tasks")
        problem = f"{model.name} has no vision tower (no 'images' among its capabilities)"
        raise UserError(f"{problem}, but task {shown[0]} shows photos; {advice}")
    compared = [task.name for task in tasks if task.answering != "generate"]
    if compared and "loglikelihood" not in able:
        problem = f"{model.name} has no 'loglikelihood' among its capabilities, but task {compared[0]} compares choices"
        raise UserError(f"{problem}; give it one, or use --answering generate")
    if "thinking" not in able and any(task.thinking_budget for task in tasks):
        problem = f"{model.name} has no way to think before it answers: its template knows none"
        raise UserError(f"--thinking-budget: {problem}; leave it out, or load the model with its own template")
    if "always_thinks" in able and not all(task.thinking_budget for task in tasks):
        problem = f"{model.name} thinks before every answer: its template knows no other way"
        raise UserError(f"{problem}; say how long it may, with --thinking-budget 4096")


def _advice(tasks: Sequence[Task], unfit: Collection[str], otherwise: str) -> str:
    fit = ",".join(task.name for task in tasks if task.name not in unfit)
    return f"give --tasks {fit}" if fit else otherwise


def check_external_metrics(tasks: Iterable[Task], *, trusted: bool) -> None:
    """Load the metrics of these tasks that are code of others, if the user allows it.

    Args:
        tasks: whose metrics.
        trusted: whether the user does.

    Raises:
        UserError: one is named but not allowed, or cannot be loaded.
    """
    for task in tasks:
        for metric in task.metrics:
            if isinstance(metric, ExternalMetric):
                if not trusted:
                    source = "Python code of the Hugging Face hub" if metric.code is None else "this Python file"
                    advice = f"{metric.path} would run {source}; if you trust it, give --trust-metric-code"
                    raise UserError(f"{task.where}: metrics: {advice}")
                if metric.code is None and Path(metric.path).exists():
                    advice = "a folder of that name is here, and would be taken for it; give the path of a .py file"
                    raise UserError(f"{task.where}: metrics: {metric.path}: {advice}")
                try:
                    load_metric(metric.path, metric.revision, metric.code)
                except UserError as error:
                    raise UserError(f"{task.where}: metrics: {error}") from None
