"""From a row to a question: prompt, options, gold answer and photos, by the templates of a task file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from mmtune.errors import UserError, did_you_mean
from mmtune.evaluation.answers import KINDS, LETTERS, YES_NO, Kind
from mmtune.evaluation.dataset import Photo
from mmtune.evaluation.wording import FILTERS, Protocol, asks_yes_no

if TYPE_CHECKING:
    from mmtune.evaluation.task import Task

IMAGE_PLACEHOLDER = "<image>"


def _environment() -> SandboxedEnvironment:
    # task files come from anywhere: they may format a row, and nothing else
    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(FILTERS)
    environment.globals.clear()
    return environment


_ENVIRONMENT = _environment()


def template_names(source: str, where: str, *, expression: bool = False) -> frozenset[str]:
    """The names that a template (or a bare expression) takes from outside.

    Raises:
        UserError: it is not jinja2, or uses a filter that does not exist; `where` is named.
    """
    text = "{{ (" + source + ") }}" if expression else source
    try:
        names = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        _ENVIRONMENT.from_string(text)  # finds unknown filters and tests, which parsing does not
    except TemplateSyntaxError as error:
        message = str(error.message)
        if message.startswith("No filter named"):
            message += f" {did_you_mean(message.split(chr(39))[1], _ENVIRONMENT.filters)}"
        raise UserError(f"{where}: not a jinja2 template: {message}") from None
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class Question:
    """A row made ready to be asked.

    Attributes:
        row: its number in the split, from 0.
        prompt: what the user says, `<image>` where a photo goes.
        options: the options' texts; empty for a free answer.
        target: the gold answer.
        kind: what counts as an answer.
        photos: in the order of their placeholders.
        group: which group of the set it belongs to, if the task has groups.
    """

    row: int
    prompt: str
    options: tuple[str, ...]
    target: str
    kind: Kind
    photos: tuple[Photo, ...]
    group: str | None


class Renderer:
    """The templates of a task, compiled, under a protocol."""

    def __init__(self, task: Task, protocol: Protocol) -> None:
        self._task = task
        self._asks_yes_no = asks_yes_no(protocol)
        self._prompt = _template(task.prompt)
        self._target = _template(task.target)
        self._kind = _template(task.answer)
        self._options = _expression(task.options)
        self._filter = _expression(task.filter)
        self._group = _expression(task.group_by)

    def keeps(self, number: int, row: Mapping[str, Any]) -> bool:
        """Whether the task's `filter` keeps a row.

        Raises:
            UserError: the expression fails on this row.
        """
        return self._filter is None or bool(self._evaluate("filter", number, self._filter, self._names(row)))

    def question(self, number: int, row: Mapping[str, Any]) -> Question:
        """Make a row ready.

        Args:
            number: the row's number in the split, for complaints.
            row: the columns; photos as `Photo` or None.

        Raises:
            UserError: a template fails on this row, the gold answer is no valid answer, or the prompt's
                placeholders are not as many as the row's photos.
        """
        names = self._names(row)
        options: tuple[str, ...] = ()
        if self._options is not None:
            options = self._option_texts(number, self._evaluate("options", number, self._options, names))
            names["options"] = list(options)
        photos = tuple(row[column] for column in self._task.images if row[column] is not None)
        kind = str(self._evaluate("answer", number, self._kind, names)).strip()
        if kind not in KINDS:
            raise self._complaint("answer", number, f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
        target = str(self._evaluate("target", number, self._target, names)).strip()
        self._check_target(number, target, cast(Kind, kind), options)
        group = None if self._group is None else str(self._evaluate("group_by", number, self._group, names))
        prompt = self._with_photos(
            number, str(self._evaluate("prompt", number, self._prompt, names)).strip(), len(photos)
        )
        return Question(number, prompt, options, target, cast(Kind, kind), photos, group)

    def _names(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"asks_yes_no": self._asks_yes_no, **row}

    def _complaint(self, key: str, number: int, problem: str) -> UserError:
        return UserError(f"{self._task.where}: {key}: row {number}: {problem}")

    def _evaluate(
        self, key: str, number: int, run: Callable[[Mapping[str, Any]], Any], names: Mapping[str, Any]
    ) -> Any:
        try:
            value = run(names)
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._complaint(key, number, f"{error}") from None
        if isinstance(value, StrictUndefined):
            raise self._complaint(key, number, "the value is undefined")
        return value

    def _option_texts(self, number: int, value: Any) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self._complaint("options", number, f"must give a list of texts, not {value!r}")
        if len(value) > len(LETTERS):
            raise self._complaint("options", number, f"{len(value)} options, but there are only {len(LETTERS)} letters")
        return tuple(value)

    def _check_target(self, number: int, target: str, kind: Kind, options: Sequence[str]) -> None:
        valid = {"letter": tuple(LETTERS[: len(options)]), "yes_no": YES_NO, "short": None}[kind]
        if (valid is not None and target not in valid) or not target:
            wanted = "some text" if valid is None else f"one of {', '.join(valid) or '(no options)'}"
            raise self._complaint("target", number, f"the gold answer must be {wanted}, not {target!r}")

    def _with_photos(self, number: int, prompt: str, photos: int) -> str:
        if IMAGE_PLACEHOLDER in self._task.prompt:
            if prompt.count(IMAGE_PLACEHOLDER) != photos:
                written = prompt.count(IMAGE_PLACEHOLDER)
                raise self._complaint("prompt", number, f"{written} {IMAGE_PLACEHOLDER} mark(s) for {photos} photo(s)")
            return prompt
        # a mark inside the row's own text is no place for a photo
        return f"{IMAGE_PLACEHOLDER}\n" * photos + prompt.replace(IMAGE_PLACEHOLDER, "image")


def _template(source: str) -> Callable[[Mapping[str, Any]], Any]:
    return _ENVIRONMENT.from_string(source).render


def _expression(source: str | None) -> Callable[[Mapping[str, Any]], Any] | None:
    if source is None:
        return None
    return cast(Callable[[Mapping[str, Any]], Any], _ENVIRONMENT.compile_expression(source, undefined_to_none=False))
