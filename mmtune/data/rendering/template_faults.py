"""Error messages for conversations that a tokenizer's chat template cannot write."""

from __future__ import annotations

import re
from collections.abc import Callable

from mmtune.common.errors import brief
from mmtune.data.rendering.turn_ends import Messages

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"
NO_END = (
    "the tokenizer's chat template writes nothing after an answer, so that a model could not learn where to end; "
    "choose a named template"
)
REWRITES = "the chat template writes earlier turns otherwise once the conversation goes on"
NO_END_BETWEEN = "the chat template ends the last answer alone and none before it"
_TEMPLATE = "the tokenizer's chat template"
_QUOTED = 60  # characters of a text that is shown


def refused(error: str, messages: Messages, accepts: Callable[[Messages], bool]) -> str:
    """Explain why a template raised an error for messages.

    Args:
        error: the error message of the template.
        messages: the messages that it was to write.
        accepts: returns whether the template writes other messages.
    """
    others = [message for message in messages if message["role"] != "system"]
    if len(others) < len(messages) and accepts(others):
        return f"{_TEMPLATE} takes no system prompt ({error}); put it into the first question, or use a named template"
    return f"{_TEMPLATE} refuses the conversation: {error}"


def system_fault(system: str, prompt: str) -> str:
    """Return an error message if a template's prompt lacks the system prompt; "" if it has it."""
    if _squeezed(system) in _squeezed(prompt):
        return ""
    return f"{_TEMPLATE} leaves the system prompt out; put it into the first question, or use a named template"


def answer_fault(said: str, prompt: str, written: str) -> str:
    """Return an error message if a template changes an answer, except for white space; "" if it does not.

    The opening marker of a thought in the answer may be written by the prompt.
    """
    if _squeezed(said) in _squeezed(prompt[-2 * len(THOUGHT_BEGIN) :] + written):
        return ""
    if THOUGHT_END in said and _squeezed(said.rpartition(THOUGHT_END)[2]) in _squeezed(written):
        return f"{_TEMPLATE} cuts the thought (…{THOUGHT_END}) out of the answer; take it out, or use a named template"
    return f"{_TEMPLATE} writes the answer otherwise than it was said ({_quoted(written)}); use a named template"


def continuation_fault(prompt: str, written: str, system: str) -> str:
    """Explain why the conversation that a template writes does not begin with the prompt for its answer."""
    if system and _squeezed(system) not in _squeezed(written):
        return (
            f"{_TEMPLATE} writes the system prompt only where no answer follows, so that nothing can be learnt after "
            "it; put it into the first question, or use a named template"
        )
    if prompt.rstrip().endswith(THOUGHT_BEGIN):
        return (
            f"{_TEMPLATE} begins every answer with a thought ({THOUGHT_BEGIN}) and cuts it out of what was said, so "
            "that an answer cannot be learnt as it is asked for; use a named template"
        )
    same = common_length(prompt, written)
    return (
        f"{_TEMPLATE} does not continue its own prompt: where that goes on with {_quoted(prompt[same:])}, the "
        f"conversation has {_quoted(written[same:])}; use a named template"
    )


def common_length(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _squeezed(text: str) -> str:
    """Return the text without white space, which templates remove and add."""
    return re.sub(r"\s+", "", text)


def _quoted(text: str) -> str:
    return repr(brief(text, _QUOTED))
