"""The small text functions that task files use as jinja2 filters."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mmtune.verify.option_names import LETTERS

Protocol = Literal["blind", "mlan"]

# `(?<!\s)\s*` is `\s*`, but tried once in a run of spaces instead of at each of them
_OPTION_LINE = re.compile(r"^[ \t]*([A-Z])[.):][ \t]+(\S.*)$", re.MULTILINE)
_CLOSING_INSTRUCTION = "Please answer "
_IMAGE_MARK = re.compile(r"(?<!\s)\s*<image\d*>(?P<glued>(?![\s.,;:?!)]|$))?")
_AUXILIARY = re.compile(
    r"(am|is|are|was|were|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must"
    r"|(is|are|was|were|do|does|did|has|have|could|would)n't|can't|won't)\b"
)
_EXISTENCE = re.compile(r"^(is|are|was|were) there\b|\bany\b")


def option_lines(options: Sequence[str]) -> str:
    """`A: text`, one option a line."""
    return "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))


def letter(index: int | float | str) -> str:
    """0 or "0" is A, 1 is B (so is 1.0, as columns with gaps hold it), …

    Raises:
        ValueError: not the index of an option; unlabelled splits have "" or -1.
    """
    exact = not isinstance(index, bool) and (not isinstance(index, float) or index.is_integer())
    if not exact or not 0 <= int(index) < len(LETTERS):
        raise ValueError(f"{index!r} is no index of an option")
    return LETTERS[int(index)]


def ensure_punctuation(text: str) -> str:
    """A text that does not end in punctuation gets `...`."""
    text = text.rstrip()
    return text if text.endswith(tuple(string.punctuation)) else text + "..."


def strip_punctuation(text: str) -> str:
    """The text without any punctuation."""
    return text.translate(str.maketrans("", "", string.punctuation)).strip()


def clean_hellaswag(text: str) -> str:
    """Without the marks that WikiHow's layout left: ` [title]` ends a sentence, other bracketed marks go."""
    text = text.replace(" [title]", ". ")
    closed = text.rfind("]") + 1  # a bracket that never closes is no mark
    return re.sub(" {2,}", " ", re.sub(r"\[[^\]]*\]", "", text[:closed]) + text[closed:]).strip()


def without_instruction(question: str) -> str:
    """The question without a closing `Please answer …` line."""
    last = question.rfind("\n", 0, len(question.rstrip())) + 1  # where the last line begins that says something
    begin = question.find(_CLOSING_INSTRUCTION, last)
    return (question if begin < 0 else question[:begin]).strip()


def listed_options(question: str) -> list[str]:
    """The texts of the options that a question lists itself as `A. text` lines; empty if it lists none.

    Letters that do not run from A on are not options.
    """
    found = _OPTION_LINE.findall(without_instruction(question))
    in_order = [name for name, _ in found] == list(LETTERS[: len(found)])
    return [text.rstrip() for _, text in found] if in_order and len(found) > 1 else []


def without_options(question: str) -> str:
    """The question without its closing instruction and without the options it lists."""
    question = without_instruction(question)
    return _OPTION_LINE.sub("", question).strip() if listed_options(question) else question


def without_image_marks(question: str) -> str:
    """The question without marks such as `<image1>`, which tell where in the text a photo stood."""
    return _IMAGE_MARK.sub(lambda mark: "" if mark["glued"] is None else " ", question).strip()


def looks_like_yes_no(question: str) -> bool:
    """Whether a question asks for yes or no, from its wording alone.

    Its last sentence, or that sentence's last clause, begins with an auxiliary verb and offers no
    alternatives (`or`), unless it asks whether something exists at all (`is there a cat or a dog`).
    """
    sentence = re.split(r"[.!?]\s+", question.strip().lower())[-1]
    for clause in (sentence, sentence.rpartition(",")[2]):
        clause = clause.strip()
        if _AUXILIARY.match(clause):
            return " or " not in clause or bool(_EXISTENCE.search(clause))
    return False


def asks_yes_no(protocol: Protocol) -> Callable[[str, Any], bool]:
    """How a protocol decides, given the question and the gold answer, whether to ask for yes or no.

    `mlan` does what the released files do: it looks whether the letters of `yes` or `no` are in the gold
    answer, so that `snow` counts too. `blind` never looks at the gold answer.
    """

    def decide(question: str, gold: Any) -> bool:
        if protocol == "blind":
            return looks_like_yes_no(question)
        return any(word in str(gold).lower() for word in ("yes", "no"))

    return decide


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        option_lines,
        letter,
        ensure_punctuation,
        strip_punctuation,
        clean_hellaswag,
        without_instruction,
        listed_options,
        without_options,
        without_image_marks,
    )
}
