"""Jinja2 environment of task files, and the names that their templates take."""

from __future__ import annotations

import math
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta

from mmtune.common.errors import UserError, did_you_mean
from mmtune.data.rendering.sandbox import Sandbox
from mmtune.evaluation.tasks.filters import FILTERS

LETTER_CHOICES = "letters"  # `choices: letters` compares the options' letters instead of their texts


def environment() -> Sandbox:
    """Create the jinja2 environment of task files."""
    # task files come from anywhere: they may format a row, and nothing else
    created = Sandbox(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    created.add_filters(FILTERS)
    created.globals.clear()
    return created


def _no_null(value: Any) -> Any:
    """What a template puts in; null is refused, which jinja2 would write as the word None."""
    if is_null(value):
        raise ValueError("a value is null; write {{ column or '' }}, or leave such rows out with `filter`")
    return value


def is_null(value: Any) -> bool:
    """Whether a cell is empty; columns of numbers with gaps have NaN there."""
    return value is None or (isinstance(value, float) and math.isnan(value))


ENVIRONMENT = environment()
ENVIRONMENT.finalize = _no_null


def template_names(source: str, where: str, *, expression: bool = False) -> frozenset[str]:
    """The names that a template (or a bare expression) takes from outside.

    Raises:
        UserError: it is not jinja2, or uses a filter that does not exist; `where` is named.
    """
    text = "{{ (" + source + ") }}" if expression else source
    try:
        names = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
        # finds unknown filters and tests, which parsing does not
        (ENVIRONMENT.compile_expression if expression else ENVIRONMENT.from_string)(source)
    except TemplateSyntaxError as error:
        message = str(error.message)
        if message.startswith("No filter named"):
            message += f" {did_you_mean(message.split(chr(39))[1], ENVIRONMENT.filters)}"
        raise UserError(f"{where}: not a jinja2 template: {message}") from None
    except RecursionError:
        raise UserError(f"{where}: not a jinja2 template: it is nested too deeply") from None
    return frozenset(names)
