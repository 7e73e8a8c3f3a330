"""Rendering of a tokenizer's chat template as transformers renders it, with limits on time and size."""

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
        tokenizer: a transformers tokenizer.
        messages: messages with role and content.
        source: template source in jinja, used in place of the tokenizer's chat template.
        prompt: begin the assistant's turn at the end (generation prompt).
        names: other variables for the template.

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
        source: the template in jinja.
        messages: messages with role and content.
        where: the folder or hub id of the template, for messages.
        prompt: begin the assistant's turn at the end (generation prompt).
        names: other variables for the template.
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
    except Exception as error:  # code in a template may raise any exception
        raise TemplateError(reason(error)) from None


def _file(where: str) -> str:
    """Return the file with the chat template of a folder; the folder itself, or the hub id, if none is found."""
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
    """Return a sandbox with the extensions, the `tojson` filter and the globals that transformers gives templates."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[type(one) for one in theirs.extensions.values()])
    ours.add_filters({"tojson": theirs.filters["tojson"]})
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}  # which has no limit
    return ours
