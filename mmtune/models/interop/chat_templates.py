"""Chat templates in Jinja: export of ours for transformers, and recognition of ours in a model's own template."""

from __future__ import annotations

import json
from typing import Any

from mmtune.common.errors import UserError
from mmtune.data.rendering.chat_rendering import render_source
from mmtune.data.rendering.layouts import LAYOUTS, Layout
from mmtune.data.rendering.template_date import dated, split_date
from mmtune.data.rendering.templates import (
    TEMPLATES,
    TOKENIZER_TEMPLATE,
    content_parts,
    takes_parts,
    tokenizer_template,
)
from mmtune.interfaces import Turn
from mmtune.models.interop.weights import find_file, read_settings

# Converts every message's content to one string, with a single image on a line of its own at the start, as in LLaVA.
# Content may be a string or a list of parts; the template that follows receives strings only.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set said = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set said.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- set said.text = said.text + ('<image>' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- endif -%}
{%- if said.text.count('<image>') == 1 -%}
{%- set said.text = ('<image>\\n' + said.text.replace('<image>', '').strip()).strip() -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
# without this, Qwen3's template has the model think, and ours answers at once
_AT_ONCE = "{%- set enable_thinking = enable_thinking | default(false) -%}\n"
# the system prompt apart from the turns
_SYSTEM = """\
{{%- set about = namespace(system={default}) -%}}
{{%- if messages and messages[0]['role'] == 'system' -%}}
{{%- set about.system = messages[0]['content'] -%}}
{{%- set messages = messages[1:] -%}}
{{%- endif -%}}
"""
_TURNS = """\
{{{{- {system} -}}}}
{{%- for message in messages -%}}
{{%- if message['role'] == 'user' -%}}
{{{{- {before_later} + {user[0]} + {inner} + {said} + {user[1]} -}}}}
{{%- elif message['role'] == 'assistant' -%}}
{{{{- {answer[0]} + message['content'] + {answer[1]} -}}}}
{{%- else -%}}
{{{{- raise_exception('a turn must be of user or assistant, after one system prompt at most') -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{- {cue} -}}}}
{{%- endif -%}}"""
_PROBES = (
    [Turn("user", "<image>\nwhat?")],
    [Turn("system", "be kind"), Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three")],
)


def jinja_template(name: str, tokenizer: Any, date: str | None = None) -> str:
    """Return one of our templates as Jinja; the content of messages may be strings or lists of parts.

    Args:
        name: as in `--model.template`.
        tokenizer: tokenizer of the model; the name `tokenizer` selects its own template.
        date: date that its own template writes; None leaves it unchanged.
    """
    if name != TOKENIZER_TEMPLATE:
        return _FLATTEN + _body(LAYOUTS[name])
    prelude, own = split_date(tokenizer.chat_template)
    at_once = _AT_ONCE if tokenizer_template(tokenizer).thinking == "optional" else ""
    before = at_once + ("" if takes_parts(tokenizer) else _FLATTEN)
    text = own if own.startswith(before) else before + own  # a template that was exported before begins so
    return prelude + text if date is None else dated(text, date)


def _body(layout: Layout) -> str:
    """Convert a layout to Jinja; the content of messages must be strings."""
    system, nothing = "''", "''"
    if layout.system is not None:
        system = f"({_quoted(layout.system[0])} + about.system + {_quoted(layout.system[1])}"
        system += ")" if layout.empty_system else " if about.system else '')"
    begin = f"('' if loop.first else {_quoted(layout.before_later)})" if layout.before_later else nothing
    return _SYSTEM.format(default=_quoted(layout.default_system or "")) + _TURNS.format(
        system=nothing if layout.system_in_turn else system,
        inner=f"({system} if loop.first else '')" if layout.system_in_turn else nothing,
        before_later=begin,
        user=[_quoted(text) for text in layout.user],
        said="'<image>' * message['content'].count('<image>')" if layout.images_alone else "message['content']",
        answer=[_quoted(layout.cue + layout.answer[0]), _quoted(layout.answer[1] + layout.after_answer)],
        cue=_quoted(layout.cue),
    )


def _quoted(text: str) -> str:
    """Return a text as a Jinja string literal."""
    return json.dumps(text)


def chat_template_of(reference: str) -> str | None:
    """Read the chat template of a folder or hub repository from any of its files, the processor's first, or None."""
    if (file := find_file(reference, "chat_template.jinja")) is not None:
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = (read_settings(reference, name) or {}).get("chat_template")
        if isinstance(found, str):
            return found
    return None


def template_of(reference: str) -> str:
    """Return the name of our template that renders the same text as a LLaVA's chat template.

    It is `tokenizer` for a chat template that matches none of ours, and `vicuna_v1`, LLaVA 1.5's, if there is no chat
    template: the released layout does not record which template a model was trained with.
    """
    source = chat_template_of(reference)
    if source is None:
        return "vicuna_v1"
    written = [_render(source, turns, reference) for turns in _PROBES]
    for name, template in TEMPLATES.items():
        try:
            if written == [template.prompt(turns) for turns in _PROBES]:
                return name
        except UserError:  # this one cannot render the turns
            continue
    return TOKENIZER_TEMPLATE


def _render(source: str, turns: list[Turn], reference: str) -> str | None:
    """Render turns with a Jinja template, which may take lists of parts or strings; None if it takes neither."""
    for as_parts in (True, False):
        messages = [{"role": t.role, "content": content_parts(t.text) if as_parts else t.text} for t in turns]
        try:
            rendered = render_source(source, messages, reference, prompt=True, enable_thinking=False)
        except UserError:
            raise
        except Exception:  # a template may raise any exception for unknown input
            continue
        if turns[-1].text.rpartition("\n")[2] in rendered:
            return rendered
    return None
