"""Text before and after each turn in mmtune's named templates: one table for rendering and for export.

`templates.py` renders rows with it, `models/interop/chat_templates.py` makes jinja of it for exported models.
"""

from __future__ import annotations

from dataclasses import dataclass

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Conversation layout of a model family; a pair is the text before and the text after.

    Attributes:
        user: around the user's text.
        answer: around the assistant's text; learned with it.
        stop: the marker that ends the assistant's turn.
        cue: the end of a prompt, with which the assistant's turn begins; not learned.
        after_answer: the text that follows an answer; not learned.
        before_later: the text before every turn of the user except the first.
        system: around the system prompt; None where there is no place for one.
        default_system: the system prompt of conversations without one; None where there is none.
        empty_system: whether `system` is also written around an empty system prompt.
        system_in_turn: whether the system prompt is in the user's first turn, before the user's text.
        images_alone: whether only the images of the user's turn are written.
    """

    user: tuple[str, str]
    answer: tuple[str, str]
    stop: str
    cue: str = ""
    after_answer: str = ""
    before_later: str = ""
    system: tuple[str, str] | None = None
    default_system: str | None = None
    empty_system: bool = False
    system_in_turn: bool = False
    images_alone: bool = False


LAYOUTS = {
    "vicuna_v1": Layout(
        user=("USER: ", " ASSISTANT:"),
        answer=(" ", "</s>"),
        stop="</s>",
        system=("", " "),
        default_system=VICUNA_SYSTEM,
        empty_system=True,
    ),
    "llama_2": Layout(
        user=("[INST] ", " [/INST]"),
        answer=(" ", " </s>"),
        stop="</s>",
        before_later="<s>",
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        default_system=LLAMA_2_SYSTEM,
        system_in_turn=True,
    ),
    "plain": Layout(user=("", ""), answer=("", "\n"), stop="\n", images_alone=True),
    "chatml": Layout(
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        answer=("", "<|im_end|>"),
        stop="<|im_end|>",
        cue="<|im_start|>assistant\n",
        after_answer="\n",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
    ),
}
