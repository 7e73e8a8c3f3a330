"""Conversation templates as jinja, for transformers; and which of ours a model's own jinja template is."""

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

# Every message's content as one string, a single photo on a line of its own at the start, as LLaVA writes it. Content
# may be a string or a list of parts; the template that follows sees strings alone.
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
    """A template of ours as jinja, whose messages may be strings or lists of parts.

    Args:
        name: as in `--model.template`.
        tokenizer: whose own template `tokenizer` stands for.
        date: that its own template is told to write; None leaves it as it is.
    """
    if name != TOKENIZER_TEMPLATE:
        return _FLATTEN + _body(LAYOUTS[name])
    prelude, own = split_date(tokenizer.chat_template)
    at_once = _AT_ONCE if tokenizer_template(tokenizer).thinking == "optional" else ""
    before = at_once + ("" if takes_parts(tokenizer) else _FLATTEN)
    text = own if own.startswith(before) else before + own  # exported once before, it begins so
    return prelude + text if date is None else dated(text, date)


def _body(layout: Layout) -> str:
    """A layout as jinja; messages have strings for their content."""
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
    """A text as jinja writes it."""
    return json.dumps(text)


def chat_template_of(reference: str) -> str | None:
    """The chat template of a folder or hub repository, wherever it is kept; the processor's before others."""
    if (file := find_file(reference, "chat_template.jinja")) is not None:
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = (read_settings(reference, name) or {}).get("chat_template")
        if isinstance(found, str):
            return found
    return None


def template_of(reference: str) -> str:
    """Which of our templates a LLaVA speaks: the one that writes what its chat template writes.

    `tokenizer` for a chat template that is none of ours, and `vicuna_v1`, LLaVA 1.5's, where there is none: nothing in
    the released layout says which conversation a model was trained with.
    """
    source = chat_template_of(reference)
    if source is None:
        return "vicuna_v1"
    written = [_render(source, turns, reference) for turns in _PROBES]
    for name, template in TEMPLATES.items():
        try:
            if written == [template.prompt(turns) for turns in _PROBES]:
                return name
        except UserError:  # ours have no place for it
            continue
    return TOKENIZER_TEMPLATE


def _render(source: str, turns: list[Turn], reference: str) -> str | None:
    """A jinja template's text for turns, messages as lists of parts and then as strings, whichever it takes."""
    for as_parts in (True, False):
        messages = [{"role": t.role, "content": content_parts(t.text) if as_parts else t.text} for t in turns]
        try:
            rendered = render_source(source, messages, reference, prompt=True, enable_thinking=False)
        except UserError:
            raise
        except Exception:  # a template raises as it likes at what it does not know
            continue
        if turns[-1].text.rpartition("\n")[2] in rendered:
            return rendered
    return None
