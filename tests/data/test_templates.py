"""Templates against LLaVA's own preprocessing, and the spans of what the assistant said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_builders import make_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.common.errors import RowError, UserError
from mmtune.data.conversation import Conversation, check
from mmtune.data.encoding import IGNORED, ModelInputs, encode, encode_text
from mmtune.data.rendering.sentencepiece import build_tokenizer
from mmtune.data.rendering.templates import TEMPLATES, Rendered, get_template, tokenizer_template
from mmtune.data.sources.formats import FORMATS
from mmtune.interfaces import Turn

GOLDENS = json.loads((Path(__file__).parent / "llava_goldens.json").read_text(encoding="utf-8"))
MODES = {"v1": "vicuna_v1", "llava_llama_2": "llama_2", "plain": "plain"}


def cases(mismatch: bool | None = None) -> list[Any]:
    chosen = [c for c in GOLDENS["cases"] if mismatch is None or c["mismatch"] == mismatch]
    return [pytest.param(c, id=f"{c['name']}-legacy" if c["legacy"] else c["name"]) for c in chosen]


def read(case: Any) -> Conversation:
    parse = next(known.parse for known in FORMATS if known.name == "LLaVA/ShareGPT")
    turns, _ = next(parse({"conversations": case["conversations"]}, "golden"))
    if case["system"] is not None:
        turns.insert(0, Turn("system", case["system"]))
    photos = sum(turn.text.count("<image>") for turn in turns)
    return Conversation(tuple(turns), (b"",) * photos, "golden", 1)


@pytest.mark.parametrize("case", cases())
def test_ids_of_llavas_text(case: Any, llama_path: Path) -> None:
    ids, _ = encode_text(Rendered(case["text"], ()), build_tokenizer(llama_path, legacy=case["legacy"]))
    assert ids.tolist() == case["input_ids"]


@pytest.mark.parametrize("case", cases(mismatch=False))
def test_rows_give_llavas_ids_and_labels(case: Any, llama_path: Path) -> None:
    conversation = read(case)
    if any(turn.role == "assistant" and not turn.text.strip() for turn in conversation.turns):
        with pytest.raises(RowError, match="answer in turn 2 is empty"):  # LLaVA learns the bare end marker
            check(conversation)
        return
    if any(turn.text.count("<image>") > 1 for turn in conversation.turns):
        rendered = TEMPLATES[MODES[case["mode"]]].render(conversation)  # LLaVA drops all photos but one
        assert rendered.text.count("<image>") == len(conversation.images)
        return
    tokenizer = build_tokenizer(llama_path, legacy=case["legacy"])
    inputs = ModelInputs(tokenizer, TEMPLATES[MODES[case["mode"]]], tokens_per_image=1)
    example = encode(check(conversation), inputs, 10_000)
    labels = [int(i) if s else IGNORED for i, s in zip(example.input_ids, example.supervised, strict=True)]
    assert example.input_ids.tolist() == case["input_ids"]
    assert labels == case["labels"]


def test_the_goldens_hold_what_they_are_for() -> None:
    compared = [c for c in GOLDENS["cases"] if not c["mismatch"]]
    assert {c["mode"] for c in compared} == set(MODES)
    assert {c["legacy"] for c in compared} == {True, False}
    assert any(len(c["conversations"]) > 2 for c in compared)
    assert any("<image>" in c["text"] for c in compared)
    assert {c["system"] for c in compared} == {None, ""}
    for name, mode in (("v1", "vicuna_v1"), ("llava_llama_2", "llama_2")):
        assert GOLDENS["meta"]["default_systems"][name] == TEMPLATES[mode].default_system


# Spans

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: "<image>" not in text)
ANSWER = TEXT.filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    photos = 0
    for _ in range(draw(st.integers(1, 4))):
        marks = draw(st.sampled_from([0, 0, 1, 2]))
        photos += marks
        turns.append(Turn("user", "\n".join(["<image>"] * marks + [draw(TEXT)])))
        turns.append(Turn("assistant", draw(ANSWER)))
    return Conversation(tuple(turns), (b"",) * photos, "rows.jsonl", 1)


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("vicuna_v1", " {}</s>"),
        ("llama_2", " {} </s>"),
        ("chatml", "{}<|im_end|>"),
        ("tokenizer", "{}<|im_end|>"),
    ],
)
@settings(max_examples=80, deadline=None)
@given(conversation=conversations())
def test_spans_hold_exactly_what_the_assistant_said(name: str, around: str, conversation: Conversation) -> None:
    rendered = get_template(name, make_byte_tokenizer()).render(check(conversation))
    said = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    assert [rendered.text[start:end] for start, end in rendered.answers] == [around.format(s) for s in said]
    assert rendered.text.count("<image>") == len(conversation.images)
    ends = [0, *(at for span in rendered.answers for at in span)]
    assert ends == sorted(ends)


@settings(max_examples=80, deadline=None)
@given(conversation=conversations(), name=st.sampled_from(["vicuna_v1", "llama_2", "chatml", "tokenizer"]))
def test_training_text_begins_with_the_prompt_that_evaluation_gives(conversation: Conversation, name: str) -> None:
    template = get_template(name, make_byte_tokenizer())
    rendered = template.render(conversation)
    for number, (start, _) in enumerate(rendered.answers):
        system = [t for t in conversation.turns if t.role == "system"]
        prompt = template.prompt([*system, *conversation.dialogue[: 2 * number + 1]])
        assert prompt == rendered.text[:start]


@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_chatml_is_what_a_chatml_tokenizer_renders(conversation: Conversation) -> None:
    if conversation.system == "":
        return  # the named template leaves an empty system prompt out
    tokenizer = make_byte_tokenizer()
    assert TEMPLATES["chatml"].render(conversation) == tokenizer_template(tokenizer).render(conversation)


def talk(*texts: str, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    head = [] if system is None else [Turn("system", system)]
    return Conversation((*head, *turns), (), "rows.jsonl", 4)


def test_chatml_in_full() -> None:
    rendered = TEMPLATES["chatml"].render(talk("Hi", "Hello", "Bye", "See you", system="Be brief"))
    assert rendered.text == (
        "<|im_start|>system\nBe brief<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>\n"
    )


def test_response_prefixes_begin_the_answer() -> None:
    user = [Turn("user", "Hi")]
    assert TEMPLATES["vicuna_v1"].prompt(user, response_prefix="The").endswith("USER: Hi ASSISTANT: The")
    assert TEMPLATES["chatml"].prompt(user, response_prefix="The").endswith("<|im_start|>assistant\nThe")
    assert TEMPLATES["vicuna_v1"].prompt(user).endswith("ASSISTANT:")


# The tokenizer's own template


def with_template(jinja: str, *, bos: bool = False) -> Any:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = jinja
    if bos:
        from tokenizers import processors

        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
        )
    return tokenizer


LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("bos", [True, False])
def test_the_start_marker_of_a_carried_template_is_not_doubled(bos: bool) -> None:
    tokenizer = with_template(LLAMA_LIKE if bos else LLAMA_LIKE.replace("{{ bos_token }}", ""), bos=bos)
    rendered = tokenizer_template(tokenizer).render(talk("Hi", "Hello", "Bye", "See you"))
    ids, supervised = encode_text(rendered, tokenizer)
    assert ids.tolist().count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == int(bos)
    assert tokenizer.decode(ids[supervised]) == " Hello<|im_end|> See you<|im_end|>"


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (
            "{{ raise_exception('no system prompts here') }}",
            "refuses the conversation: no system prompts here",
        ),
        ("{{ messages | length }}", "use a named template"),  # each turn rewrites the ones before
        ("{{ messages[-1].content }}", "use a named template"),
    ],
)
def test_carried_templates_that_cannot_be_used(jinja: str, message: str) -> None:
    template = tokenizer_template(with_template(jinja))
    with pytest.raises(RowError) as error:
        template.render(talk("Hi", "Hello", "Bye", "See you", system="x"))
    assert str(error.value).startswith("rows.jsonl, row 4: ")
    assert message in str(error.value)


def test_prompts_that_a_template_cannot_write_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="'plain' is for photo and caption"):
        TEMPLATES["plain"].prompt([Turn("user", "Hi")])
    with pytest.raises(RowError, match="row 4: template 'plain'"):
        TEMPLATES["plain"].render(talk("Hi", "Hello"))


def test_names(byte_tokenizer: Any) -> None:
    assert get_template("plain", byte_tokenizer) is TEMPLATES["plain"]
    assert get_template("tokenizer", byte_tokenizer).stops == ("<|im_end|>",)
    with pytest.raises(UserError, match=r"--model\.template vicuna_v2: did you mean 'vicuna_v1'"):
        get_template("vicuna_v2", byte_tokenizer)
    with pytest.raises(UserError, match="the tokenizer of tiny carries no chat template"):
        get_template("tokenizer", with_template(""))
