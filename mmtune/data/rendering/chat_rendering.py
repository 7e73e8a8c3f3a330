"""The chat template of a tokenizer, rendered as transformers renders it, and within limits of time and size."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from mmtune.common.errors import UserError, reason
from mmtune.data.rendering.sandbox import LimitError, Sandbox, limited

_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    source: str | None = None,
    prompt: bool = False,
    **names: Any,
) -> str:
    """Render messages with the chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        messages: with role and content.
        source: in place of the template that the tokenizer carries.
        prompt: begin the assistant's turn at the end.
        names: what else the template may use.

    Raises:
        UserError: the template takes more time or memory than it may.
        TemplateError: it refuses the messages, or is no template.
    """
    names = tokenizer.special_tokens_map | names
    source = source or tokenizer.get_chat_template()
    return render_source(source, messages, str(tokenizer.name_or_path), prompt=prompt, **names)


def render_source(
    source: str, messages: Sequence[Mapping[str, Any]], where: str, *, prompt: bool = False, **names: Any
) -> str:
    """Render messages with the source of a chat template; see `render_chat`.

    Args:
        source: in jinja.
        messages: with role and content.
        where: the folder or hub id that it is of.
        prompt: begin the assistant's turn at the end.
        names: what else the template may use.
    """
    given = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": prompt}
    try:
        with limited():
            return _compiled(source).render(**given | names)
    except LimitError as error:
        raise UserError(
            f"{_file(where)}: the chat template is not rendered: {error.message}; take a named one (template)"
        ) from None
    except TemplateError:
        raise
    except Exception as error:  # of any kind, as what is computed in the template
        raise TemplateError(reason(error)) from None


def _file(where: str) -> str:
    """The file of a folder that a chat template stands in; the folder itself, or a hub id, where none is known."""
    for name in _FILES:
        file = Path(where) / name
        if file.is_file() and (name.endswith(".jinja") or '"chat_template"' in file.read_text(errors="replace")):
            return str(file)
    return where


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Sandbox:
    """What transformers gives to chat templates, in our sandbox."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[type(one) for one in theirs.extensions.values()])
    ours.add_filters({"tojson": theirs.filters["tojson"]})
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}  # which has no end
    return ours
