"""The templates that mmtune names: rows are rendered, and exported models told, as one table says."""

from __future__ import annotations

import itertools

import jinja2
import pytest

from mmtune.data.conversation import Conversation
from mmtune.data.rendering.layouts import LAYOUTS
from mmtune.data.rendering.templates import get_template
from mmtune.interfaces import Turn
from mmtune.models.interop.chat_templates import jinja_template

SAID = ("Hi", "What is this?\nAnd that?", "  a b  ", "1 < 2 & {{ x }} {% if %}")


def conversations(system: str | None) -> list[tuple[Turn, ...]]:
    first = (Turn("system", system),) if system is not None else ()
    return [
        (*first, *itertools.chain.from_iterable((Turn("user", q), Turn("assistant", a)) for q, a in pairs))
        for length in (1, 2, 3)
        for pairs in itertools.product(itertools.pairwise(SAID), repeat=length)
    ]


@pytest.mark.parametrize("system", [None, "Be brief.", " two\nlines "])
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if not layout.images_alone])
def test_the_exported_template_writes_what_rows_are_rendered_as(name: str, system: str | None) -> None:
    template = get_template(name, None)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda message: pytest.fail(message)
    exported = environment.from_string(jinja_template(name, None))
    for turns in conversations(system):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        whole = exported.render(messages=messages, bos_token="", eos_token="</s>", add_generation_prompt=False)
        rendered = template.render(Conversation(turns, (), "rows", 1)).text
        assert whole == rendered
        asked = exported.render(messages=messages[:-1], bos_token="", eos_token="</s>", add_generation_prompt=True)
        assert asked == template.prompt(list(turns[:-1]))
