"""What stands before and after each turn in the templates that mmtune names: one table for all that write them.

`templates.py` renders rows by it, `models/interop/chat_templates.py` makes jinja of it for exported models.
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
    """How a model family writes a conversation down; a pair is what stands before and after.

    Attributes:
        user: around what the user says.
        answer: around what the assistant says; learnt with it.
        stop: the marker that ends the assistant's turn.
        cue: what a prompt ends with, and the assistant's turn begins with; not learnt.
        after_answer: what follows an answer; not learnt.
        before_later: what stands before every turn of the user but the first.
        system: around the system prompt; None where there is no place for one.
        default_system: the system prompt of conversations that bring none; None where there is none.
        empty_system: whether `system` is also written around an empty system prompt.
        system_in_turn: whether the system prompt stands in the user's first turn, before what is said.
        images_alone: whether of the user's turn only the photos are written.
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
