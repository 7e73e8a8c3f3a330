"""A task: one dataset, how it is asked, and how the answers are scored. Read from one YAML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainValidator, ValidationInfo

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.common.files import resource_folder, sha256_file, sha256_json, user_path
from mmtune.common.schema import COMPUTED, Natural, NullIsAbsent, Positive, Texts, load_layered, one_of, validate
from mmtune.evaluation.score.external import ExternalMetric
from mmtune.evaluation.score.metrics import METRICS, VERIFIER_OF, MetricSpec, metric_arguments
from mmtune.evaluation.tasks.jinja import LETTER_CHOICES, template_names
from mmtune.interfaces import SamplingParams, Verifier
from mmtune.verify.extraction import KINDS, STEPS
from mmtune.verify.registry import VERIFIERS

Modality = Literal["language", "vision"]
Answering = Literal["generate", "likelihood", "likelihood_norm"]
ANSWERING: tuple[str, ...] = get_args(Answering)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it becomes a file name
_PROVIDED = frozenset({"asks_yes_no"})  # names that templates get besides the columns


@dataclass(frozen=True, slots=True)
class ImageJoin(NullIsAbsent):
    """Photos that stand in another config of the same dataset.

    Attributes:
        config: that config; its split is the dataset's.
        key: the column there that identifies a photo.
        column: the column there that holds it, and the name it gets here.
        on: the column here that names the photo.
    """

    config: str
    key: str
    column: str
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec(NullIsAbsent):
    """Where the rows are.

    Attributes:
        path: the hub id.
        config: the config; None for the only one.
        split: the split.
        revision: the hub's commit, branch or tag; None for the newest.
        images: photos to join, if they stand apart.
    """

    path: str
    config: str | None = None
    split: str
    revision: str | None = None
    images: ImageJoin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(NullIsAbsent):
    """One set and its protocol, as a task file has it. `docs/add-a-task.md` explains every key.

    Attributes:
        name: what it is called in tables and file names.
        where: the file it came from, for messages.
        version: raised whenever a change makes scores incomparable.
        modality: which average it counts in.
        dataset: where the rows are.
        prompt: template of what the user says.
        target: template of the gold answer.
        references: expression that gives all gold answers that count, or None for the target alone.
        answer: the kind of answer, or a template that gives it.
        images: the columns that hold photos.
        options: expression that gives the options' texts, or None.
        answering: `generate` an answer and extract it, or take the choice that the model finds likeliest, by its
            summed log-probability (`likelihood`) or by that per character (`likelihood_norm`).
        choices: what is compared by likelihood: `letters`, or an expression that gives one text per valid answer;
            None for the options' texts, or yes and no.
        filter: expression that says which rows are used, or None for all.
        response_prefix: how the assistant's turn begins.
        max_tokens: the most tokens an answer may have.
        thinking_budget: the most tokens of a thought before the answer; 0 for an answer at once.
        stop: strings that end an answer.
        extract: names of extraction steps, in order.
        verifier: what scores an answer, one of `VERIFIERS`.
        metrics: the first is the task's score.
        group_by: expression that names a row's group, or None.
        limit: use the first so many rows; None for all.
    """

    name: str
    where: Annotated[str, COMPUTED] = ""
    version: Positive
    modality: Modality
    dataset: DatasetSpec
    prompt: str
    target: str
    references: str | None = None
    answer: str
    images: Texts = ()
    options: Annotated[str | None, BeforeValidator(_options)] = None
    answering: Answering = "generate"
    choices: str | None = None
    filter: str | None = None
    response_prefix: str = ""
    max_tokens: Positive
    thinking_budget: Natural = 0
    stop: Texts = ()
    extract: Annotated[Texts, one_of(STEPS)] = ()
    verifier: Annotated[str, one_of(VERIFIERS)] = "exact"
    metrics: Annotated[tuple[MetricSpec | ExternalMetric, ...], PlainValidator(_metrics)]
    group_by: str | None = None
    limit: Positive | None = None

    @property
    def sampling(self) -> SamplingParams:
        """How completions of its prompts are chosen."""
        return SamplingParams(max_tokens=self.max_tokens, stop=tuple(self.stop), thinking_budget=self.thinking_budget)

    def make_verifier(self) -> Verifier:
        """The verifier of its answers; choices that are compared by likelihood need no extraction steps."""
        return VERIFIERS[self.verifier](self.extract if self.answering == "generate" else ())

    def definition_hash(self) -> str:
        """Changes with anything in the definition, but not with where the file lies."""
        return sha256_json({**dataclasses.asdict(self), "where": None})

    @property
    def has_choices(self) -> bool:
        """Whether every answer is one of a few that can be compared by likelihood; free answers are not."""
        return not any(kind in self.answer for kind in KINDS if kind not in ("letter", "yes_no"))

    def columns_by_key(self) -> dict[str, frozenset[str]]:
        """The dataset's columns that each key of the task file uses; joined photos are not among them.

        Raises:
            UserError: a key is no template or expression.
        """
        computed = frozenset() if self.options is None else frozenset({"options"})
        joined = frozenset() if self.dataset.images is None else frozenset({self.dataset.images.column})
        templates = {"prompt": self.prompt, "target": self.target, "answer": self.answer}
        expressions = {"group_by": self.group_by, "filter": self.filter, "options": self.options}
        expressions["references"] = self.references
        expressions["choices"] = None if self.choices == LETTER_CHOICES else self.choices
        used = {key: template_names(source, f"{self.where}: {key}") - computed for key, source in templates.items()}
        for key, expression in expressions.items():
            if expression is not None:
                names = template_names(expression, f"{self.where}: {key}", expression=True)
                used[key] = names - computed if key not in ("filter", "options") else names
        used["images"] = frozenset(self.images)
        if self.dataset.images is not None:
            used["dataset.images.on"] = frozenset({self.dataset.images.on})
        return {key: names - joined - _PROVIDED for key, names in used.items()}


def load_task(
    name: str,
    *,
    relative_to: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    overridden_by: str = "",
) -> Task:
    """Read a task file.

    Args:
        name: a shipped task's name, or the path of a YAML file.
        relative_to: the folder that such a path starts from.
        overrides: keys to replace; `path`, `config`, `split`, `revision` replace those of `dataset`.
        overridden_by: the file that the overrides stand in, for messages.

    Raises:
        UserError: there is no such task, or its file is wrong; file and key are named.
    """
    path = find_task(name, relative_to)
    raw = load_layered(path)
    if isinstance(raw, dict) and overrides:
        dataset_keys = {"path", "config", "split", "revision"}
        raw = {**raw, **{k: v for k, v in overrides.items() if k not in dataset_keys}}
        if isinstance(raw.get("dataset"), dict):
            raw["dataset"] = {**raw["dataset"], **{k: v for k, v in overrides.items() if k in dataset_keys}}
    return task_from(raw, f"{overridden_by}: {path}" if overrides else str(path), path.parent)


def find_task(name: str, relative_to: Path | None = None) -> Path:
    """The file of a task: a path if it looks like one, else a shipped task."""
    if name.endswith((".yaml", ".yml")):
        path = (relative_to or Path()) / user_path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such task file")
        return path
    folder = resource_folder("eval_suites") / "tasks"
    path = folder / f"{name}.yaml"
    known = [p.stem for p in folder.glob("*.yaml")]
    if name not in known:
        raise UserError(f"unknown task {name!r}; {did_you_mean(name, known)}; a task file of your own ends in .yaml")
    return path


def task_from(raw: Any, where: str, folder: Path = Path()) -> Task:
    """A task from the value of its YAML file.

    Args:
        raw: the value.
        where: the file, for messages.
        folder: where the paths in it start from.

    Raises:
        UserError: a key is missing, unknown or wrong.
    """
    task = dataclasses.replace(validate(Task, raw, where, context=(where, folder)), where=where)
    if problem := _problem(task):
        raise UserError(f"{where}: {problem}")
    task.columns_by_key()  # parses every template and expression
    return task


def _problem(task: Task) -> str | None:
    """What is wrong with the parts of a task together, or with one in a way that its type does not tell."""
    if not _NAME.fullmatch(task.name):
        return f"name: {task.name!r} may hold only letters, digits, '_', '-' and '.'"
    for key in ("path", "config", "split"):
        part = getattr(task.dataset, key)
        if part is not None and (not part or ".." in part or part.startswith("/")):
            return f"dataset: {key}: {part!r} is no hub id or name"
    if "{" not in task.answer and task.answer not in KINDS:
        return f"answer: unknown {task.answer!r}; {did_you_mean(task.answer, KINDS)}"
    if task.answer == "letter" and task.options is None:
        return "options: missing, and `answer: letter` needs them; say which column lists the options"
    if task.modality == "vision" and not task.images:
        return "images: missing, and `modality: vision` needs them; name the column of the photo"
    if task.answering != "generate" and not task.has_choices:
        return f"answering: {task.answering} needs `answer: letter` or `yes_no`; use generate"
    if task.thinking_budget and task.answering != "generate":
        return f"thinking_budget: {task.answering} compares choices, before any thought; remove one"
    for metric in task.metrics:
        if VERIFIER_OF.get(metric.name, task.verifier) != task.verifier:
            wanted = f"{metric.name} is the mean score of `verifier: {VERIFIER_OF[metric.name]}`"
            return f"metrics: {wanted}, not of {task.verifier}; name that verifier, or use accuracy"
    if task.verifier == "vqa" and task.references is None:
        return "references: missing, and `verifier: vqa` needs them; say which column lists the answers"
    if "" in task.stop:
        return "stop: an empty text would end every answer at once; remove it"
    return None


def _options(value: Any) -> str | None:
    """An expression; a list of column names is short for the expression that lists them."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return "[" + ", ".join(value) + "]"
    raise ValueError(f"must be an expression or a list of columns, not {brief(repr(value))}")


def _metrics(value: Any, info: ValidationInfo[tuple[str, Path]]) -> tuple[MetricSpec | ExternalMetric, ...]:
    """The metrics that a list of names, and of names with arguments, stands for."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {brief(repr(value))}")
    found: list[MetricSpec | ExternalMetric] = []
    for entry in value:
        name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(f"every entry must be a name, or a name with arguments, not {brief(repr(entry))}")
        external = name == "evaluate"
        found.append(_external_metric(arguments, *info.context) if external else _metric(name, arguments))
    if not found or isinstance(found[0], ExternalMetric):
        reason = "is empty" if not found else "begins with one that cannot be resampled for a standard error"
        raise ValueError(f"{reason}; the first metric is the task's score, e.g. [accuracy]")
    names = [metric.name for metric in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice")
    return tuple(found)


def _metric(name: str, arguments: Mapping[str, Any]) -> MetricSpec:
    if name not in METRICS:
        raise ValueError(f"unknown {name!r}; {did_you_mean(name, [*METRICS, 'evaluate'])}")
    for key, value in arguments.items():
        if key not in metric_arguments(name):
            raise ValueError(f"{name} has no argument {key!r}; {did_you_mean(str(key), metric_arguments(name))}")
        if not isinstance(value, str):
            raise ValueError(f"{name}: {key} must be text, not {value!r}; put it in quotes")
    return MetricSpec(name, arguments)


def _external_metric(raw: dict[str, Any], where: str, folder: Path) -> ExternalMetric:
    where = f"{where}: metrics: evaluate"
    metric = validate(ExternalMetric, raw, where)
    if not metric.path.endswith(".py"):
        return metric
    file = folder / user_path(metric.path)
    if not file.is_file():
        raise UserError(f"{where}: path: {file}: no such file")
    return dataclasses.replace(metric, path=str(file), code=sha256_file(file))
