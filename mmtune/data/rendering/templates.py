"""Chat templates that render conversations to text and record the spans of the assistant's answers.

`vicuna_v1`, `llama_2` and `plain` are LLaVA's (conversation.py and train.py of the released code, checked
token by token against its own preprocessing in tests/data/test_templates.py); `chatml` is Qwen's and
SmolLM2's; `layouts.py` has them. `tokenizer` renders with the chat template that the tokenizer itself carries,
with a thought before the answer (Qwen3's `<think>…</think>`) where the answer has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from mmtune.common.errors import RowError, UserError, did_you_mean, reason
from mmtune.data.conversation import IMAGE_PLACEHOLDER, Conversation
from mmtune.data.rendering import template_faults as faults
from mmtune.data.rendering.chat_rendering import render_chat
from mmtune.data.rendering.layouts import LAYOUTS, Layout
from mmtune.data.rendering.template_date import dated, reads_clock
from mmtune.data.rendering.turn_ends import Messages, TurnEnds, find_turn_ends
from mmtune.interfaces import Turn

TOKENIZER_TEMPLATE = "tokenizer"
THOUGHT_BEGIN, THOUGHT_END = faults.THOUGHT_BEGIN, faults.THOUGHT_END
Thinking = Literal["never", "optional", "always"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Conversation rendered as text.

    Attributes:
        text: the whole text, with `<image>` at the place of an image.
        answers: the learned text: a (start, end) span of characters per supervised answer, with the end marker. Turns
            before the last have none where the template writes them differently later.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class _Writer:
    """Collect the text and the character spans of the learned answers.

    `thinking` is whether the answer to be generated begins with a thought.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking
        self.text = ""
        self.answers: list[tuple[int, int]] = []
        self._last: tuple[int, int] | None = None  # the last answer without its end marker, if it is learned

    def add(self, text: str) -> None:
        self.text += text

    def answer(self, text: str, end: str = "", *, supervised: bool = True) -> None:
        start, said = len(self.text), len(self.text) + len(text)
        self.text += text + end
        self._last = (start, said) if supervised else None
        if supervised:
            self.answers.append((start, len(self.text)))

    def rewrite(self, text: str, ends: TurnEnds) -> None:
        """Replace the text by another version of the same turns, and keep the answer spans that are still valid.

        The last answer is still learned if all text up to its last word is the same and an end follows, as in templates
        that end the last answer differently from earlier ones.
        """
        same = faults.common_length(self.text, text)
        kept = [span for span in (self.answers[:-1] if self._last else self.answers) if span[1] <= same]
        if self._last is not None:
            start, said = self._last
            if said <= same and (end := ends.between(text[said:])):
                kept.append((start, said + end))
        self.text, self.answers = text, kept

    def rendered(self) -> Rendered:
        return Rendered(self.text, tuple(self.answers))


@dataclass(frozen=True, slots=True)
class Template:
    """Chat template of a model family.

    Attributes:
        name: as given by `--model.template`.
        write: writes turns (ending with the assistant's, or with the user's for a prompt) to a writer.
        stops: the markers that end the assistant's turn.
        default_system: the system prompt of conversations without one; None where the template has none.
        thinking: whether a prompt can ask for a thought before the answer, or always does.
        source: the jinja source of a tokenizer's own template, which also decides the text; "" for other templates.
        reads_clock: whether it may write the date of the day on which it is used.
        untrainable: why a model cannot be trained with it; "" where it can.
        left_out: why some earlier answers are not learned, where this happens.
        trims: whether the leading white space of an answer is not written.
    """

    name: str
    write: Callable[[_Writer, str, Sequence[Turn]], None]
    stops: tuple[str, ...]
    default_system: str | None = None
    thinking: Thinking = "never"
    source: str = ""
    reads_clock: bool = False
    untrainable: str = ""
    left_out: str = faults.REWRITES
    trims: bool = False

    def check_trainable(self, where: str) -> None:
        """Refuse a template with which a model could not learn where an answer ends.

        Raises:
            UserError: the template is untrainable; the message begins with `where`.
        """
        if self.untrainable:
            raise UserError(f"{where}: {self.untrainable}")

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation for training.

        Raises:
            RowError: the template has no place for some content of the conversation.
        """
        writer = _Writer()
        if self.thinking == "never" and any(turn.thought for turn in conversation.turns):
            raise RowError(
                f"{conversation.where}: template {self.name!r} knows no thoughts, and the row has one apart from its "
                "answer; write it into the answer to have it learned as text"
            )
        try:
            self.write(writer, self._system(conversation.system), image_first(conversation.dialogue))
        except _NoPlaceError as error:
            raise RowError(f"{conversation.where}: {error}") from None
        return writer.rendered()

    def prompt(self, turns: Sequence[Turn], *, response_prefix: str = "", thinking: bool = False) -> str:
        """Render turns that end with the user's to a prompt for the answer, which begins with `response_prefix`.

        With `thinking` the answer begins with a thought, in a template that supports both modes.

        Raises:
            UserError: the template has no place for some content of the turns, or does not support thoughts.
        """
        if thinking and self.thinking == "never":
            raise UserError(f"template {self.name!r} knows no thoughts before an answer; leave out thinking_budget")
        system = turns[0].text if turns[0].role == "system" else None
        writer = _Writer(thinking=thinking)
        self.write(writer, self._system(system), image_first([t for t in turns if t.role != "system"]))
        return join_response_prefix(writer.text, response_prefix)

    def _system(self, given: str | None) -> str:
        return given if given is not None else self.default_system or ""


class _NoPlaceError(UserError):
    """Template has no place for some content; the caller that knows the row adds it to the message."""


def join_response_prefix(prompt: str, response_prefix: str) -> str:
    """Append `response_prefix` to the prompt, after a space unless the prompt ends in white space."""
    if not response_prefix or prompt[-1:].isspace():
        return prompt + response_prefix
    return f"{prompt} {response_prefix}"


def image_first(turns: Sequence[Turn]) -> list[Turn]:
    """Move the image of a one-image turn to its start, on a line of its own, as LLaVA does.

    Turns with several images keep them in place: the question may depend on their order.
    """
    return [
        Turn(turn.role, f"{IMAGE_PLACEHOLDER}\n{turn.text.replace(IMAGE_PLACEHOLDER, '').strip()}".strip())
        if turn.text.count(IMAGE_PLACEHOLDER) == 1
        else turn
        for turn in turns
    ]


def _writer_of(layout: Layout, name: str) -> Callable[[_Writer, str, Sequence[Turn]], None]:
    """Return a function that writes turns in a layout."""

    def write(out: _Writer, system: str, turns: Sequence[Turn]) -> None:
        before, after = layout.system or ("", "")
        about = f"{before}{system}{after}" if layout.system and (system or layout.empty_system) else ""
        if not layout.system_in_turn:
            out.add(about)
        for position, turn in enumerate(turns):
            if turn.role == "user":
                said = _images_of(turn, name) if layout.images_alone else turn.text
                inner = about if layout.system_in_turn and position == 0 else ""
                begin = layout.before_later if position else ""
                out.add(f"{begin}{layout.user[0]}{inner}{said}{layout.user[1]}{layout.cue}")
            else:
                out.answer(f"{layout.answer[0]}{turn.text}{layout.answer[1]}", supervised=turn.supervised)
                out.add(layout.after_answer)

    return write


def _images_of(turn: Turn, name: str) -> str:
    images = turn.text.count(IMAGE_PLACEHOLDER)
    if not images:
        raise _NoPlaceError(f"template {name!r} is for photo and caption; this turn has no photo (use a chat template)")
    return IMAGE_PLACEHOLDER * images


TEMPLATES: dict[str, Template] = {
    name: Template(name, _writer_of(layout, name), (layout.stop,), layout.default_system)
    for name, layout in LAYOUTS.items()
}


def tokenizer_template(tokenizer: Any, date: str | None = None) -> Template:
    """Return the template that the tokenizer carries (`tokenizer.chat_template`).

    Args:
        tokenizer: a tokenizer with a chat template.
        date: the date that the template writes as today's; None lets it read the clock.

    Raises:
        UserError: the tokenizer carries no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"template 'tokenizer': the tokenizer of {tokenizer.name_or_path} carries no chat template; "
            f"choose one of {', '.join(TEMPLATES)}"
        )

    in_parts, source = takes_parts(tokenizer), dated(tokenizer.get_chat_template(), date)

    def render(turns: Messages, *, prompt: bool, thinking: bool = False) -> str:
        messages = [turn | {"content": content_parts(turn["content"])} for turn in turns] if in_parts else turns
        try:
            text = render_chat(tokenizer, messages, source=source, prompt=prompt, enable_thinking=thinking)
        except TemplateError as error:  # a template may refuse any content, for example a system prompt
            said = faults.refused(reason(error), turns, lambda others: rendered(others, prompt) is not None)
            raise _NoPlaceError(said) from None
        # the tokenizer adds its own start token when the text is tokenized
        return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token and adds_bos(tokenizer) else text

    def rendered(turns: Messages, prompt: bool) -> str | None:
        try:
            return render(turns, prompt=prompt)
        except _NoPlaceError:
            return None

    ends = find_turn_ends(rendered, map(str, tokenizer.added_tokens_decoder.values()))

    def write(out: _Writer, system: str, turns: Sequence[Turn]) -> None:
        messages = [{"role": "system", "content": system}] if system else []
        for place, turn in enumerate(turns):
            messages.append({"role": turn.role, "content": turn.text})
            if turn.role == "user":
                given = turns[place + 1].text if place + 1 < len(turns) else None
                thinking = out.thinking if given is None else THOUGHT_END in given
                text = render(messages, prompt=True, thinking=thinking)
                _refuse(faults.system_fault(system, text))
                if text.startswith(out.text):
                    out.add(text[len(out.text) :])
                else:  # Qwen3's drops earlier thoughts; the new text is not the context of those answers
                    out.rewrite(text, ends)
            else:
                text = render(messages, prompt=False, thinking=thinking)
                if not text.startswith(out.text):
                    _refuse(faults.continuation_fault(out.text, text, system))
                answer, end, after = ends.split(text[len(out.text) :])
                _refuse(faults.answer_fault(turn.text, out.text, answer))
                out.answer(answer, end, supervised=turn.supervised)
                out.add(after)

    def modes() -> Thinking:
        asked = [{"role": "user", "content": "a"}]
        try:
            at_once, thinking = (render(asked, prompt=True, thinking=mode) for mode in (False, True))
        except _NoPlaceError:
            return "never"
        if at_once != thinking:
            return "optional"
        return "always" if thinking.rstrip().endswith(THOUGHT_BEGIN) else "never"

    return Template(
        TOKENIZER_TEMPLATE,
        write,
        ends.markers or tuple(filter(None, [ends.next_turn])),
        thinking=modes(),
        source=source,
        reads_clock=reads_clock(source),
        untrainable=faults.NO_END if ends.missing else "",
        left_out=faults.NO_END_BETWEEN if ends.missing_between else faults.REWRITES,
        trims=_trims(rendered),
    )


def _trims(rendered: Callable[[Messages, bool], str | None]) -> bool:
    """Return whether a chat template removes the leading white space of an answer."""
    indented = "    a"
    text = rendered([{"role": "user", "content": "a"}, {"role": "assistant", "content": indented}], False)
    return text is not None and indented not in text


def _refuse(fault: str) -> None:
    if fault:
        raise _NoPlaceError(fault)


def content_parts(text: str) -> list[dict[str, str]]:
    """Split a turn's text into images and texts, as transformers' multimodal templates take it."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece.strip("\n")}] if piece.strip() else []
    return parts


def takes_parts(tokenizer: Any) -> bool:
    """Return whether the chat template needs each turn as a list of parts, and so writes nothing of a plain string."""
    try:
        text = render_chat(tokenizer, [{"role": "user", "content": "said"}])
    except TemplateError:  # a template may raise any error for unknown content
        return True
    return "said" not in text


def adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds its start token before every text."""
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def get_template(name: str, tokenizer: Any, date: str | None = None) -> Template:
    """Return the template of this name; `tokenizer` is the tokenizer's own, which may get a fixed `date`.

    Raises:
        UserError: there is no such template, or the tokenizer carries none.
    """
    if name == TOKENIZER_TEMPLATE:
        return tokenizer_template(tokenizer, date)
    if name not in TEMPLATES:
        raise UserError(f"--model.template {name}: {did_you_mean(name, [*TEMPLATES, TOKENIZER_TEMPLATE])}")
    return TEMPLATES[name]
