"""Conversation schema that every data format is converted to, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmtune.common.errors import RowError
from mmtune.data.images import ImageSource, load_image
from mmtune.interfaces import Turn

IMAGE_PLACEHOLDER = "<image>"
MARK_AS_TEXT = (
    "\ufdd0image\ufdd1"  # in a rendered prompt: an `<image>` that is text, between characters that no text has
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Conversation between a user and an assistant, with or without images.

    Attributes:
        turns: an optional system turn, then user and assistant in alternation, the assistant last. `<image>`
            in a user's text marks the place of an image.
        images: the images, in the order of their placeholders.
        source: the file or hub id of the row.
        row: the row number in the source, counted from 1 (the line number in JSON Lines).
        values: numbers in the row that an objective reads, by column.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...]
    source: str
    row: int
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Source and row number, for messages."""
        return f"{self.source}, row {self.row}"

    @property
    def system(self) -> str | None:
        """System prompt of the conversation, or None where it has none."""
        return self.turns[0].text if self.turns[0].role == "system" else None

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """Turns without the system prompt: user and assistant in alternation."""
        return self.turns[1:] if self.turns[0].role == "system" else self.turns


def check(conversation: Conversation) -> Conversation:
    """Return the conversation if it can be trained on.

    Raises:
        RowError: no turns, roles that do not alternate, an empty answer, no answer to learn, an `<image>` mark outside
            the user's turns, text that is not Unicode, or images and `<image>` marks that differ in number.
    """
    where = conversation.where
    for turn in conversation.turns:
        if turn.role != "user" and IMAGE_PLACEHOLDER in turn.text:
            raise RowError(f"{where}: {IMAGE_PLACEHOLDER} stands in the {turn.role}'s turn; it belongs in the user's")
        if not is_unicode(turn.text):
            raise RowError(f"{where}: the {turn.role}'s text holds half of a surrogate pair, which no tokenizer reads")
    if not conversation.turns or not conversation.dialogue:
        raise RowError(f"{where}: the conversation has no turns")
    for position, turn in enumerate(conversation.dialogue):
        expected = "assistant" if position % 2 else "user"
        if turn.role != expected:
            raise RowError(
                f"{where}: turn {position + 1} is the {turn.role}'s where the {expected}'s was expected; "
                "user and assistant must alternate, the user first"
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise RowError(f"{where}: the assistant's answer in turn {position + 1} is empty")
    if len(conversation.dialogue) % 2:
        raise RowError(f"{where}: the conversation ends with the user's turn, so there is nothing to learn from it")
    if not any(turn.supervised for turn in conversation.dialogue if turn.role == "assistant"):
        raise RowError(f"{where}: no answer is to be learned; every turn of the assistant has the weight 0")
    marks = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in conversation.turns)
    if marks != len(conversation.images):
        raise RowError(
            f"{where}: {marks} {IMAGE_PLACEHOLDER} mark(s) but {len(conversation.images)} photo(s); "
            "every mark needs its photo, and every photo its mark"
        )
    return conversation


def is_unicode(text: str) -> bool:
    """Return whether the text is Unicode; a JSON escape such as \\ud83d alone gives text that is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ImageCheck:
    """Check that images decode; each image is decoded once, however many rows show it."""

    def __init__(self) -> None:
        self._faults: dict[ImageSource, str | None] = {}  # messages, to follow file and row

    def check(self, conversation: Conversation) -> None:
        """Check that the images of a row decode.

        Raises:
            RowError: an image does not decode.
        """
        for image in conversation.images:
            if image not in self._faults:
                self._faults[image] = self._fault(image)
            if (fault := self._faults[image]) is not None:
                raise RowError(f"{conversation.where}{fault}")

    @staticmethod
    def _fault(image: ImageSource) -> str | None:
        try:
            load_image(image, "")
        except RowError as error:
            return str(error)
        return None
