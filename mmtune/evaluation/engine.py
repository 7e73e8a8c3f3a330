"""Score a model on a suite."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mmtune.errors import UserError, did_you_mean
from mmtune.evaluation.asking import ask
from mmtune.evaluation.dataset import RowSet, check_data, load_rows
from mmtune.evaluation.metrics import Outcomes, standard_error, summarise
from mmtune.evaluation.progress import Reporter
from mmtune.evaluation.prompting import Renderer
from mmtune.evaluation.protocol import AnsweringModel, load_model, usage_of
from mmtune.evaluation.store import Results, Sample, Store, TaskResult, versions
from mmtune.evaluation.suite import PROTOCOLS, Suite, load_suite
from mmtune.evaluation.task import Task
from mmtune.evaluation.wording import Protocol
from mmtune.files import sha256_json


def evaluate(
    model: AnsweringModel | str | Path,
    suite: Suite | str | Path,
    *,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    data_root: str | Path | None = None,
    batch_tokens: int = 4096,
    protocol: str | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: bool = True,
) -> Results:
    """Score a model zero-shot on a suite of tasks. `mmtune eval` does the same.

    The scores depend on the model, the task files, the rows, the protocol and the limit, and on nothing else.

    Args:
        model: the model, or what `VisionLanguageModel.from_pretrained` accepts.
        suite: the suite, or the name or file of one.
        out: where to write `results.json` and `samples/`, after every finished task; None writes nothing.
        tasks: only these tasks of the suite.
        limit: only the first so many rows of each task.
        data_root: read `DIR/hub/<hub id>/<config>/<split>.parquet` in place of the hub.
        batch_tokens: tokens the model may compute at once.
        protocol: `blind` or `mlan`, in place of the suite's own.
        seed: of the bootstrap behind the standard errors.
        device: where a model given by its path is put.
        resume: take over tasks that were finished in `out` with the same model, task file, protocol, limit,
            seed and rows.
        progress: tell on stderr how far it is.

    Returns:
        Scores, samples and cost.

    Raises:
        UserError: a mistake in the suite, the data, the folder or an argument; found before the model is
            loaded where that can be.
    """
    plan = suite if isinstance(suite, Suite) else load_suite(suite)
    chosen = plan.select(tasks)
    rule = _protocol(protocol or plan.protocol)
    for flag, value, least in (
        ("--limit", limit, 1),
        ("--batch-tokens", batch_tokens, 1),
        ("--seed", seed, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")
    root = None if data_root is None else Path(data_root)
    for task in chosen:
        check_data(task, root)
    store = None if out is None else Store(Path(out))
    earlier = store.finished() if store is not None and resume else {}
    if isinstance(model, (str, Path)):
        model = load_model(model, device)
    _check_sight(model, chosen)

    fingerprint = model.fingerprint

    def key(task: Task, rows: str | None) -> str:
        return sha256_json([fingerprint, task.definition_hash(), rule, rows, limit, seed])

    # what still holds stays in the file while other tasks run, so that a kill loses none of it
    known = {
        task.name: old
        for task in plan.tasks
        if (old := earlier.get(task.name)) is not None and old.key == key(task, old.dataset["fingerprint"])
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = Results(plan.name, model.name, now, versions())
    report = Reporter(shown=progress)
    for task in chosen:
        begun, before = time.perf_counter(), usage_of(model)
        renderer = Renderer(task, rule)
        rows = load_rows(task, root, limit=_smaller(limit, task.limit), keep=renderer.keeps)
        old = known.pop(task.name, None)
        samples = _reusable(store, task, old, rows)
        if old is not None and samples is not None:
            known[task.name], results.samples[task.name] = old, samples
            report.say(f"{task.name}: finished before, {old.n} rows, {100 * old.score:.1f} %")
        else:
            questions = [renderer.question(number, row) for number, row in rows.rows]
            with report.task(task.name, len(questions)):
                samples = ask(model, task, questions, batch_tokens=batch_tokens, advance=report.advance)
            spent = {name: count - before[name] for name, count in usage_of(model).items()}
            cost = {"seconds": round(time.perf_counter() - begun, 3), **spent}
            result = _score(task, samples, rows, rule, seed, cost, key(task, rows.fingerprint))
            known[task.name], results.samples[task.name] = result, samples
            report.say(f"{task.name}: {result.n} rows, {100 * result.score:.1f} % in {result.seconds:.0f} s")
        results.tasks = {t.name: known[t.name] for t in plan.tasks if t.name in known}
        if store is not None and old is not known[task.name]:
            store.write(results, task.name)
    return results


def _reusable(store: Store | None, task: Task, old: TaskResult | None, rows: RowSet) -> list[Sample] | None:
    """The samples of an earlier result that still holds, or None."""
    if store is None or old is None or old.dataset["fingerprint"] != rows.fingerprint:
        return None
    samples = store.read_samples(task.name)
    return samples if samples is not None and len(samples) == old.n else None


def _score(
    task: Task,
    samples: Sequence[Sample],
    rows: RowSet,
    protocol: Protocol,
    seed: int,
    cost: dict[str, float],
    key: str,
) -> TaskResult:
    outcomes = Outcomes.of(
        [sample.score for sample in samples],
        [sample.prediction for sample in samples],
        [sample.target for sample in samples],
    )
    summary = summarise(task.metrics, outcomes, [sample.group for sample in samples])
    main = task.metrics[0]
    spec = task.dataset
    return TaskResult(
        modality=task.modality,
        version=task.version,
        n=len(samples),
        metric=main.name,
        score=summary[main.name],
        stderr=standard_error(main, outcomes, seed),
        unparsed=sum(sample.prediction is None for sample in samples) / len(samples),
        failed=sum(sample.error is not None for sample in samples),
        metrics=summary,
        dataset={
            "path": spec.path,
            "config": spec.config,
            "split": spec.split,
            "fingerprint": rows.fingerprint,
        },
        protocol=protocol,
        seconds=cost["seconds"],
        cost=cost,
        key=key,
    )


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"--protocol: unknown {name!r}; {did_you_mean(name, PROTOCOLS)}")
    return cast(Protocol, name)


def _check_sight(model: AnsweringModel, tasks: Sequence[Task]) -> None:
    """A text-only model is told so before hours of language tasks, not after."""
    shown = [task.name for task in tasks if task.images]
    if shown and getattr(model, "tower", model) is None:
        others = ",".join(task.name for task in tasks if not task.images)
        advice = f"give --tasks {others}" if others else "choose a suite of language tasks"
        raise UserError(f"{model.name} has no vision tower, but task {shown[0]} shows photos; {advice}")


def _smaller(first: int | None, second: int | None) -> int | None:
    given = [limit for limit in (first, second) if limit is not None]
    return min(given) if given else None
