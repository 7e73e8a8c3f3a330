"""Where an answer ends, in the templates that families are published with."""

from __future__ import annotations

import pytest
from chat_templates import (
    ALTERNATING,
    CUTS_THOUGHTS,
    DROPS_SYSTEM,
    EOS,
    FAMILIES,
    NO_END,
    R1,
    SYSTEM_AT_THE_END,
    Family,
    carrying,
)

from mmtune.common.errors import RowError, UserError
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import ModelInputs, Remarks, encode
from mmtune.data.rendering.templates import Rendered, Template, tokenizer_template
from mmtune.interfaces import Turn

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def talk(*texts: str, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    head = [] if system is None else [Turn("system", system)]
    return Conversation((*head, *turns), (), "rows.jsonl", 4)


def of(family: Family) -> Template:
    return tokenizer_template(carrying(family.jinja, family.tokens, family.eos))


def learnt(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.answers]


@EACH
def test_the_markers_are_those_that_the_family_writes(family: Family) -> None:
    template = of(family)
    assert template.stops == family.ends
    assert template.untrainable == ""


@EACH
@pytest.mark.parametrize("system", [None, "Be kind"])
def test_every_answer_that_is_learnt_ends_with_its_marker(family: Family, system: str | None) -> None:
    template = of(family)
    conversation = talk("Hi", "Hello", "Bye", "See you", "?", "!", system=system)
    if system is not None and not family.system:
        with pytest.raises(RowError, match=r"takes no system prompt .*; put it into the first question"):
            template.render(conversation)
        return
    said = learnt(template.render(conversation))
    earlier = [] if family.middle is None else [f"Hello{family.middle}", f"See you{family.middle}"]
    head = "<|channel|>final<|message|>" if "<|channel|>" in family.tokens else ""
    lead = " " if family.last == " </s>" else ""
    assert said == [f"{lead}{head}{text}" for text in [*earlier, f"!{family.last}"]]


@EACH
def test_an_answer_is_learnt_where_it_is_asked_for(family: Family) -> None:
    template = of(family)
    turns = talk("Hi", "Hello", "Bye", "See you").turns
    rendered = template.render(talk("Hi", "Hello", "Bye", "See you"))
    asked = [template.prompt(turns[:count]) for count in (1, 3)]
    starts = [start for start, _ in rendered.answers]
    assert [rendered.text[:start] for start in starts] == asked[-len(starts) :]


def test_a_row_is_not_said_to_lack_answers_that_it_teaches() -> None:
    family = FAMILIES["phi-3"]
    inputs = ModelInputs(carrying(family.jinja, family.tokens), of(family))
    remarks = Remarks()
    remarks.look_at(
        talk("Hi", "Hello", "Bye", "See you"),
        encode(talk("Hi", "Hello", "Bye", "See you"), inputs, 999).supervised,
        inputs,
    )
    assert remarks.left_out == []


def test_why_earlier_answers_are_not_learnt() -> None:
    family = FAMILIES["eos at the last turn alone"]
    conversation, remarks = talk("Hi", "Hello", "Bye", "See you"), Remarks()
    inputs = ModelInputs(carrying(family.jinja, family.tokens), of(family))
    remarks.look_at(conversation, encode(conversation, inputs, 999).supervised, inputs)
    assert remarks.left_out == ["rows.jsonl, row 4: 1 of 2 answers"]
    assert remarks.left_out_because == "the chat template ends the last answer alone and none before it"


def test_a_template_that_ends_nothing_is_not_trained_with() -> None:
    template = tokenizer_template(carrying(NO_END))
    with pytest.raises(UserError, match=r"^--model\.template tokenizer: tiny: .* writes nothing after an answer"):
        template.check_trainable("--model.template tokenizer: tiny")
    assert template.stops == ("\nUser:",)  # what an answer is cut at


@pytest.mark.parametrize(
    ("jinja", "row", "message"),
    [
        (ALTERNATING, talk("Hi", "Hello", system="Be kind"), "takes no system prompt (Conversation roles must"),
        (SYSTEM_AT_THE_END, talk("Hi", "Hello", system="Be kind"), "system prompt only where no answer follows"),
        (DROPS_SYSTEM, talk("Hi", "Hello", system="Be kind"), "leaves the system prompt out"),
        (R1, talk("Hi", "Hello"), "begins every answer with a thought (<think>)"),
        (R1, talk("Hi", "<think>\nHm.\n</think>\n\nHello"), "begins every answer with a thought"),
        (
            CUTS_THOUGHTS,
            talk("Hi", "<think>\nHm.\n</think>\n\nHello"),
            "cuts the thought (…</think>) out of the answer",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content | replace('H', 'J') }}{{ eos_token }}{% endfor %}",
            talk("Hi", "Hello"),
            "writes the answer otherwise than it was said ('assistant: Jello')",
        ),
        ("{{ 1 / 0 }}", talk("Hi", "Hello"), "refuses the conversation: division by zero"),
    ],
)
def test_the_reason_is_the_real_one(jinja: str, row: Conversation, message: str) -> None:
    with pytest.raises(RowError) as error:
        tokenizer_template(carrying(jinja)).render(row)
    assert str(error.value).startswith("rows.jsonl, row 4: the tokenizer's chat template ")
    assert message in str(error.value)
    assert str(error.value).endswith("use a named template") or "refuses the conversation" in message


@pytest.mark.parametrize("jinja", [ALTERNATING, SYSTEM_AT_THE_END, CUTS_THOUGHTS])
def test_what_such_templates_can_write_is_learnt(jinja: str) -> None:
    said = learnt(tokenizer_template(carrying(jinja)).render(talk("Hi", "Hello", "Bye", "See you")))
    assert [text.strip() for text in said] == [f"Hello{EOS}", f"See you{EOS}"]
