"""Score a model on a suite."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.common.attributes import set_attributes
from mmtune.common.errors import UserError
from mmtune.common.files import sha256_json
from mmtune.evaluation.run.chunks import Chunk, plan_chunks
from mmtune.evaluation.run.database import Database
from mmtune.evaluation.run.load_model import (
    BATCH_TOKENS,
    check_reference,
    computing_note,
    fold_adapters,
    load_model,
    settings_of,
    usage_of,
)
from mmtune.evaluation.run.preflight import (
    answered_by,
    check_choices,
    check_external_metrics,
    check_model,
    check_numbers,
    check_thinking,
    protocol_named,
    thought_about,
)
from mmtune.evaluation.run.progress import Reporter
from mmtune.evaluation.run.prompt_date import fix_date
from mmtune.evaluation.run.remarks import of_failures, of_figures, of_questions, of_window
from mmtune.evaluation.run.requests import Answer, ask
from mmtune.evaluation.run.results import Results, Sample, TaskResult, versions
from mmtune.evaluation.run.store import Store
from mmtune.evaluation.run.windows import check_past_window, described, has_window, refuse_rows, rows_past_window
from mmtune.evaluation.run.workers import Workers, join
from mmtune.evaluation.score.scoring import score_answer, score_task
from mmtune.evaluation.tasks.filters import Protocol
from mmtune.evaluation.tasks.render import Question, Renderer
from mmtune.evaluation.tasks.rows import check_data, load_rows
from mmtune.evaluation.tasks.suite import Suite, load_suite
from mmtune.evaluation.tasks.task import Task
from mmtune.interfaces import Generator


def evaluate(
    model: Generator | str | Path,
    suite: Suite | str | Path,
    *,
    language: str | None = None,
    template: str | None = None,
    template_date: str | None = None,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    data_root: str | Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    protocol: str | None = None,
    answering: str | None = None,
    thinking_budget: int | None = None,
    past_window: str = "refuse",
    share_prefixes: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    strict: bool = False,
    trust_metric_code: bool = False,
    progress: bool = True,
) -> Results:
    """Score a model zero-shot on a suite of tasks. `mmtune eval` does the same.

    The scores depend on the model, the task files, the rows, the protocol, the way of answering and the limit, and on
    nothing else. Under torchrun its processes share the work; every one of them gets all results, the first writes.

    Args:
        model: the model, or what `VisionLanguageModel.from_pretrained` accepts.
        suite: the suite, or the name or file of one.
        language: of a model given by its path, see `VisionLanguageModel.from_pretrained`.
        template: of a model given by its path, see `VisionLanguageModel.from_pretrained`.
        template_date: what a chat template writes that asks for today's date; None takes what the model is recorded
            with, else the day on which the evaluation in `out` began.
        out: where to keep answers as they come in, and to write `results.json` and `samples/` after every finished
            task; None writes nothing.
        tasks: only these tasks of the suite.
        limit: only the first so many rows of each task.
        data_root: read `DIR/hub/<hub id>/<config>/<split>.parquet` in place of the hub.
        batch_tokens: tokens the model may hold in memory at once.
        protocol: `blind` or `mlan`, in place of the suite's own.
        answering: `generate`, `likelihood` or `likelihood_norm`, in place of the tasks' own; see `Task`.
        thinking_budget: let the model think before it answers, at most so many tokens, and read what it says after
            `</think>`; 0 has it answer at once. In place of the tasks' own.
        past_window: what becomes of rows whose prompt leaves no room in what the model reads: `refuse` the evaluation,
            or `shorten` them by the beginning of what the user says. Of a model that tells its `window`.
        share_prefixes: whether the model computes only once what prompts begin with in common; None leaves that to it.
        seed: of the bootstrap behind the standard errors.
        device: where a model given by its path is put.
        resume: take over answers of the same model, task file, protocol and rows that are in `out`; if not, the tasks
            are asked again.
        strict: stop at the first photo that cannot be decoded, instead of counting its question as wrong.
        trust_metric_code: run the Python code of metrics that a task file takes from `evaluate`, with your rights.
        progress: tell on stderr how far it is.

    Returns:
        Scores, samples and cost.

    Raises:
        UserError: a mistake in the suite, the data, the folder or an argument, found before the model is loaded where
            that can be; a full disk.
        PeerError: another of several processes has failed, and says why.
    """
    workers = join()
    with workers.failing_together():
        plan = answered_by(suite if isinstance(suite, Suite) else load_suite(suite), answering)
        plan = thought_about(plan, thinking_budget)
        chosen = plan.select(tasks)
        check_choices(chosen, answering)
        check_thinking(chosen)
        check_past_window(past_window)
        rule = protocol_named(protocol or plan.protocol)
        check_numbers(limit=limit, batch_tokens=batch_tokens, thinking_budget=thinking_budget, seed=seed)
        if isinstance(model, (str, Path)):
            check_reference(model, language=language, template=template)
        root = None if data_root is None else Path(data_root)
        for task in chosen:
            check_data(task, root)
        check_external_metrics(chosen, trusted=trust_metric_code)
        store, database = _open(out, workers)
        try:
            earlier = store.finished() if store is not None else {}
            ready = model
            if isinstance(ready, (str, Path)):
                ready = load_model(ready, device, language=language, template=template, template_date=template_date)
            date = fix_date(ready, template_date, database)
            check_model(ready, chosen)
            fingerprint = ready.fingerprint
            if ready is not model:
                fold_adapters(ready)
            settings = settings_of(ready, batch_tokens, share_prefixes, past_window)
            evaluation = _Evaluation(
                model=ready,
                conditions=_Conditions(fingerprint, rule, limit, seed, past_window),
                database=database,
                workers=workers,
                report=Reporter(shown=progress and workers.first),
                data_root=root,
                resume=resume,
                strict=strict,
                template_date=date,
            )
            if note := computing_note(ready):
                evaluation.report.say(note)
            with set_attributes(ready, settings):
                return evaluation.run(plan, chosen, earlier, store if workers.first else None)
        finally:
            database.close()


def _open(out: str | Path | None, workers: Workers) -> tuple[Store | None, Database]:
    """The folder and its database, made by the first process before the others open it."""
    if out is None:
        if workers.count > 1:
            raise UserError("several processes share answers through a folder; give one with --out")
        return None, Database(None)
    store = Store(Path(out))
    if not workers.first:
        workers.barrier("made")
        return store, Database(store.answers_path)
    database = Database(store.answers_path)
    workers.barrier("made")
    return store, database


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What the scores depend on beside the task.

    Attributes:
        model: its fingerprint.
        rule: how questions are worded.
        limit: see `evaluate`.
        seed: see `evaluate`.
        past_window: see `evaluate`.
    """

    model: str
    rule: Protocol
    limit: int | None
    seed: int
    past_window: str

    def answers_key(self, task: Task, rows: str, questions: Sequence[Question], shortened: Sequence[int]) -> str:
        """Changes with all that the answers depend on, and with what is asked should mmtune word it in another way."""
        asked = sha256_json([[question.prompt, question.choices] for question in questions])
        return sha256_json([self.model, task.definition_hash(), self.rule, rows, asked, list(shortened)])

    def results_key(self, task: Task, rows: str | None) -> str:
        """Changes with all that the scores depend on."""
        how = [self.rule, self.past_window]
        return sha256_json([self.model, task.definition_hash(), how, rows, self.limit, self.seed])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    """Asks, stores and scores one task after the other; see `evaluate` for the attributes."""

    model: Generator
    conditions: _Conditions
    database: Database
    workers: Workers
    report: Reporter
    data_root: Path | None
    resume: bool
    strict: bool
    template_date: str | None

    def run(self, suite: Suite, chosen: Sequence[Task], earlier: dict[str, TaskResult], store: Store | None) -> Results:
        """Run the chosen tasks of a suite; earlier results of its other tasks that still hold stay among them."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        results = Results(suite.name, self.model.name, now, versions(), template_date=self.template_date)
        known: dict[str, TaskResult] = {}
        for task in suite.tasks:
            old = earlier.get(task.name)
            # what still holds stays in the file while other tasks run, so that a kill loses none of it
            if old is not None and old.key == self.conditions.results_key(task, old.dataset["fingerprint"]):
                known[task.name] = old
        past_window = self._past_window(chosen)
        for task in chosen:
            shortened = list(past_window.get(task.name, ()))
            known[task.name], results.samples[task.name] = self.task(task, store, shortened)
            results.tasks = {task.name: known[task.name] for task in suite.tasks if task.name in known}
            if store is not None:
                store.write(results, task.name)
        for name, samples in results.samples.items():
            self._say(of_failures(name, samples))
        return results

    def _past_window(self, chosen: Sequence[Task]) -> dict[str, dict[int, int]]:
        """The rows of each task that are longer than the model reads, with their tokens.

        Raises:
            UserError: there are such, and they are refused.
        """
        if not has_window(self.model):
            return {}
        rule = self.conditions.past_window
        past = {task.name: rows_past_window(self.model, task, self._questions(task)[0], rule) for task in chosen}
        if rule == "refuse":
            refuse_rows(self.model, past)
        self._say(described(self.model, task, rows, rule) for task, rows in past.items() if rows)
        return past

    def task(self, task: Task, store: Store | None, shortened: Sequence[int]) -> tuple[TaskResult, list[Sample]]:
        """Ask what is not answered yet, score all answers, and keep small copies of the photos."""
        questions, fingerprint = self._questions(task)
        self._say(of_questions(task.name, questions))
        key = self.conditions.answers_key(task, fingerprint, questions, shortened)
        asked = self._ask(task, key, plan_chunks(questions))
        answers = self.database.answers(key)
        samples = [score_answer(task, question, answers[question.row, 0]) for question in questions]
        result = score_task(
            task,
            questions,
            samples,
            fingerprint=fingerprint,
            protocol=self.conditions.rule,
            seed=self.conditions.seed,
            cost=self.database.cost(key),
            key=self.conditions.results_key(task, fingerprint),
            shortened=len(shortened),
        )
        if store is not None:
            store.keep_thumbnails(task.name, questions, samples)
        scored = f"{result.n} rows, {100 * result.score:.1f} %"
        self.report.say(
            f"{task.name}: {scored} in {result.seconds:.0f} s" if asked else f"{task.name}: finished before, {scored}"
        )
        self._say(of_figures(task.name, questions, samples))
        self._say(of_window(task.name, samples))
        return result, samples

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.report.say(line)

    def _questions(self, task: Task) -> tuple[list[Question], str]:
        """What is asked, and the fingerprint of the rows, which are not kept beside the questions."""
        renderer = Renderer(task, self.conditions.rule)
        limits = [limit for limit in (self.conditions.limit, task.limit) if limit is not None]
        rows = load_rows(task, self.data_root, limit=min(limits, default=None), keep=renderer.keeps)
        return [renderer.question(number, row) for number, row in rows.rows], rows.fingerprint

    def _ask(self, task: Task, key: str, chunks: Sequence[Chunk]) -> bool:
        """Have all chunks answered, by this process or another; False if they were before."""
        if not self.resume:
            if self.workers.first:
                self.database.forget(key)
            self.workers.barrier(f"forgotten {key}")
        done = self.database.chunks(key)
        self.workers.barrier(f"begin {key}")  # before one of them adds to what was done
        if self.strict and done:
            _refuse_failed(task, self.database.answers(key).values())
        if len(done) == len(chunks):
            return False
        with self.report.task(task.name, sum(map(len, chunks)), self.database.rows(key)):
            for number in self.workers.tickets(key, len(chunks)):
                if number not in done:
                    self._ask_chunk(task, key, number, chunks[number])
                    self.report.reached(self.database.rows(key))
            self.workers.wait_until(lambda: len(self.database.chunks(key)) == len(chunks))
        return True

    def _ask_chunk(self, task: Task, key: str, number: int, chunk: Chunk) -> None:
        begun, before = time.perf_counter(), usage_of(self.model)
        answers = ask(self.model, task, chunk)
        if self.strict:
            _refuse_failed(task, answers)
        spent = {name: count - before[name] for name, count in usage_of(self.model).items()}
        self.database.add(key, number, answers, {"seconds": time.perf_counter() - begun, **spent})


def _refuse_failed(task: Task, answers: Iterable[Answer]) -> None:
    failed = [answer for answer in answers if answer.error is not None]
    if failed:
        first = min(failed, key=lambda answer: answer.row)
        raise UserError(f"task {task.name}, row {first.row}: {first.error}; mend the row, or leave out --strict")
