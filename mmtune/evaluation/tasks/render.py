"""From a row to a question: prompt, options, gold answer and photos, by the templates of a task file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateError

from mmtune.common.errors import UserError, did_you_mean
from mmtune.data.images import EncodedImage
from mmtune.data.rendering.sandbox import limited, shown
from mmtune.evaluation.tasks.filters import Protocol, asks_yes_no
from mmtune.evaluation.tasks.jinja import ENVIRONMENT, LETTER_CHOICES, environment, is_null
from mmtune.evaluation.tasks.task import Task
from mmtune.interfaces import Prompt
from mmtune.verify.answer_verifier import Reference
from mmtune.verify.extraction import KINDS, YES_NO, Kind
from mmtune.verify.option_names import LETTERS

IMAGE_PLACEHOLDER = "<image>"
# what a template can raise on a row
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
    RecursionError,
    NameError,  # jinja2 writes 1e999 into its code as `inf`
)


# in which every value that a template puts in stands between two marks, and the options are left out
_OWN = environment()
_OWN.finalize = lambda value: f"\ufdd0{shown(value)}\ufdd1"
_OWN.filters["option_lines"] = lambda options: ""
_OWN_TEXT = re.compile("\ufdd0(.*?)\ufdd1", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """A row made ready to be asked.

    Attributes:
        row: its number in the split, from 0.
        prompt: what the user says, `<image>` where a photo goes.
        options: the options' texts; empty for a free answer.
        target: the gold answer.
        references: all gold answers that count; of one person, the gold answer alone.
        kind: what counts as an answer.
        choices: the texts whose likelihoods are compared, one for each of `labels`; empty for a free answer.
        images: in the order of their placeholders.
        group: which group of the set it belongs to, if the task has groups.
    """

    row: int
    prompt: str
    options: tuple[str, ...]
    target: str
    references: tuple[str, ...]
    kind: Kind
    choices: tuple[str, ...]
    images: tuple[EncodedImage, ...]
    group: str | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The valid answers: letters, or yes and no; empty for a free answer."""
        return _labels(self.kind, self.options)

    @property
    def reference(self) -> Reference:
        """What a verifier is told of the wanted answer."""
        return Reference(self.references, self.kind, self.options)


@dataclass(frozen=True, slots=True)
class OwnTexts:
    """What a row itself puts into its prompt, without the words of the task file.

    Attributes:
        pieces: every value that the prompt's template puts in, in order, the options left out; the last is the
            question, what comes before it a passage or the like.
        options: the options' texts.
    """

    pieces: tuple[str, ...]
    options: tuple[str, ...]


class Renderer:
    """The templates of a task, compiled, under a protocol."""

    def __init__(self, task: Task, protocol: Protocol) -> None:
        self._task = task
        self._asks_yes_no = asks_yes_no(protocol)
        self._prompt = _template(task.prompt)
        self._target = _template(task.target)
        self._kind = _template(task.answer)
        self._options = _expression(task.options)
        self._references = _expression(task.references)
        self._filter = _expression(task.filter)
        self._group = _expression(task.group_by)
        self._labels_from = task.columns_by_key()["target"]
        self._choices = None if task.choices == LETTER_CHOICES else _expression(task.choices)

    def keeps(self, number: int, row: Mapping[str, Any]) -> bool:
        """Whether the task's `filter` keeps a row.

        Raises:
            UserError: the expression fails on this row.
        """
        return self._filter is None or bool(self._evaluate("filter", number, self._filter, self._names(row)))

    def question(self, number: int, row: Mapping[str, Any]) -> Question:
        """Make a row ready.

        Args:
            number: the row's number in the split, for messages.
            row: the columns; photos as `EncodedImage` or None.

        Raises:
            UserError: a template fails on this row, the gold answer is no valid answer, or the prompt's
                placeholders are not as many as the row's photos.
        """
        names, options = self._with_options(number, row)
        images = tuple(row[column] for column in self._task.images if row[column] is not None)
        kind = cast(Kind, str(self._evaluate("answer", number, self._kind, names)).strip())
        if kind not in KINDS:
            raise self._error("answer", number, f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
        if self._labels_from and all(is_null(row.get(column, "")) for column in self._labels_from):
            columns = " and ".join(sorted(self._labels_from))
            problem = f"there is no gold answer: {columns} is null; leave such rows out with `filter`"
            raise self._error("target", number, problem)
        target = str(self._evaluate("target", number, self._target, names)).strip()
        self._check_target(number, target, kind, options)
        references = self._reference_texts(number, target, names)
        choices = self._choice_texts(number, kind, options, names)
        group = None if self._group is None else self._evaluate("group_by", number, self._group, names)
        group = None if is_null(group) else str(group)
        said = self._evaluate("prompt", number, self._prompt, self._without_marks(names))
        prompt = self._with_images(number, str(said).strip(), len(images))
        return Question(number, prompt, options, target, references, kind, choices, images, group)

    def own_texts(self, number: int, row: Mapping[str, Any]) -> OwnTexts:
        """What the row itself says, without the words that the task file puts around it.

        Raises:
            UserError: a template fails on this row.
        """
        names, options = self._with_options(number, row)
        marked = str(self._evaluate("prompt", number, self._own, names))
        pieces = (piece.strip() for piece in _OWN_TEXT.findall(marked))
        return OwnTexts(tuple(filter(None, pieces)), options)

    @cached_property
    def _own(self) -> Callable[[Mapping[str, Any]], Any]:
        return _OWN.from_string(self._task.prompt).render

    def _with_options(self, number: int, row: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the templates may use, and the options."""
        names = self._names(row)
        if self._options is None:
            return names, ()
        options = self._texts("options", number, self._evaluate("options", number, self._options, names))
        if len(options) > len(LETTERS):
            problem = f"{len(options)} options, but there are only {len(LETTERS)} letters"
            raise self._error("options", number, problem)
        return {**names, "options": list(options)}, options

    def _names(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"asks_yes_no": self._asks_yes_no, **row}

    def _error(self, key: str, number: int, problem: str) -> UserError:
        return UserError(f"{self._task.where}: {key}: row {number}: {problem}")

    def _evaluate(
        self, key: str, number: int, run: Callable[[Mapping[str, Any]], Any], names: Mapping[str, Any]
    ) -> Any:
        try:
            with limited():
                value = shown(run(names))
        except _FAULTS as error:
            raise self._error(key, number, str(error) or type(error).__name__) from None
        if isinstance(value, StrictUndefined):
            raise self._error(key, number, "the value is undefined")
        return value

    def _texts(self, key: str, number: int, value: Any) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self._error(key, number, f"must give a list of texts, not {value!r}")
        return tuple(value)

    def _reference_texts(self, number: int, target: str, names: Mapping[str, Any]) -> tuple[str, ...]:
        """All gold answers that count."""
        if self._references is None:
            return (target,)
        references = self._texts("references", number, self._evaluate("references", number, self._references, names))
        if len(references) < 2:
            problem = "must be the answers of at least two people; for those of one, `target` is enough"
            raise self._error("references", number, problem)
        return references

    def _choice_texts(
        self, number: int, kind: Kind, options: tuple[str, ...], names: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """One text for each valid answer; none for a free answer."""
        labels = _labels(kind, options)
        if not labels:
            if self._task.answering != "generate":
                problem = "a free answer has no choices to compare; use `answering: generate`"
                raise self._error("answer", number, problem)
            return ()
        if self._choices is not None:
            choices = self._texts("choices", number, self._evaluate("choices", number, self._choices, names))
            if len(choices) != len(labels):
                raise self._error("choices", number, f"{len(choices)} texts for {len(labels)} valid answers")
            return choices
        return labels if kind == "yes_no" or self._task.choices == LETTER_CHOICES else options

    def _check_target(self, number: int, target: str, kind: Kind, options: Sequence[str]) -> None:
        valid = _labels(kind, options)
        if (kind != "short" and target not in valid) or not target:
            wanted = "some text" if kind == "short" else f"one of {', '.join(valid) or '(no options)'}"
            raise self._error("target", number, f"the gold answer must be {wanted}, not {target!r}")

    def _without_marks(self, names: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the prompt may use: where it marks photos itself, a mark in the row's text is no further one."""
        return cast(Mapping[str, Any], _unmarked(names)) if IMAGE_PLACEHOLDER in self._task.prompt else names

    def _with_images(self, number: int, prompt: str, images: int) -> str:
        if IMAGE_PLACEHOLDER in self._task.prompt:
            if prompt.count(IMAGE_PLACEHOLDER) != images:
                written = prompt.count(IMAGE_PLACEHOLDER)
                raise self._error("prompt", number, f"{written} {IMAGE_PLACEHOLDER} mark(s) for {images} photo(s)")
            return prompt
        # a mark inside the row's own text is no place for a photo
        return f"{IMAGE_PLACEHOLDER}\n" * images + prompt.replace(IMAGE_PLACEHOLDER, "image")


def _unmarked(value: Any) -> Any:
    """A row's value with `image` for every `<image>` in its texts."""
    if isinstance(value, str):
        return value.replace(IMAGE_PLACEHOLDER, "image")
    if isinstance(value, Mapping):
        return {name: _unmarked(inner) for name, inner in value.items()}
    return [_unmarked(inner) for inner in value] if isinstance(value, list) else value


def _labels(kind: Kind, options: Sequence[str]) -> tuple[str, ...]:
    """The valid answers of a kind; none for a free answer."""
    if kind == "letter":
        return tuple(LETTERS[: len(options)])
    return YES_NO if kind == "yes_no" else ()


def _template(source: str) -> Callable[[Mapping[str, Any]], Any]:
    return ENVIRONMENT.from_string(source).render


def _expression(source: str | None) -> Callable[[Mapping[str, Any]], Any] | None:
    if source is None:
        return None
    return cast(Callable[[Mapping[str, Any]], Any], ENVIRONMENT.compile_expression(source, undefined_to_none=False))


def prompt_of(task: Task, question: Question, images: Sequence[Any]) -> Prompt:
    """A question as it is put to a model; its name makes random numbers depend on task and row alone."""
    return Prompt.of(question.prompt, images, response_prefix=task.response_prefix, name=f"{task.name}/{question.row}")
