"""The one schema that every data format is read into."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from mmtune.errors import UserError, reason

IMAGE_PLACEHOLDER = "<image>"
MOST_PIXELS = 89_478_485  # of a photo: Pillow warns of those that are larger, twice as large ones it refuses itself
Role = Literal["system", "user", "assistant"]

# A photo is a path, or the encoded bytes themselves (rows from parquet files and the hub)
Photo = Path | bytes


class RowError(UserError):
    """A row that cannot be trained on; `--data.on_bad_row skip` leaves it out and counts it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation between a user and an assistant, perhaps about photos.

    Attributes:
        turns: an optional system turn, then user and assistant in alternation, the assistant last. `<image>`
            in a user's text marks where a photo goes.
        images: the photos, in the order of their placeholders.
        source: the file or hub id the row came from.
        row: its number there, counted from 1 (the line number in JSON Lines).
    """

    turns: tuple[Turn, ...]
    images: tuple[Photo, ...]
    source: str
    row: int

    @property
    def where(self) -> str:
        """Where a user finds this row, for messages."""
        return f"{self.source}, row {self.row}"

    @property
    def system(self) -> str | None:
        """The conversation's own system prompt, or None where it has none."""
        return self.turns[0].text if self.turns[0].role == "system" else None

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """The turns without the system prompt: user, assistant, user, …"""
        return self.turns[1:] if self.turns[0].role == "system" else self.turns


def check(conversation: Conversation) -> Conversation:
    """Return the conversation if it can be trained on.

    Raises:
        RowError: no turns, roles out of turn, an empty answer, text that is not Unicode, or photos and
            `<image>` marks that differ in number.
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
    marks = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in conversation.turns)
    if marks != len(conversation.images):
        raise RowError(
            f"{where}: {marks} {IMAGE_PLACEHOLDER} mark(s) but {len(conversation.images)} photo(s); "
            "every mark needs its photo, and every photo its mark"
        )
    return conversation


def is_unicode(text: str) -> bool:
    """Whether the text is Unicode; JSON escapes such as \\ud83d alone give text that is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_photo(photo: Photo, where: str) -> Image.Image:
    """Decode a photo to RGB, upright.

    Raises:
        RowError: it is missing, truncated, far too large or not an image; the message begins with `where`.
    """
    name = str(photo) if isinstance(photo, Path) else f"of {len(photo)} bytes"
    try:
        return decode(photo if isinstance(photo, Path) else io.BytesIO(photo))
    except FileNotFoundError:
        raise RowError(f"{where}: the photo {name} does not exist") from None
    except UnidentifiedImageError:
        raise RowError(f"{where}: the photo {name} is not a picture of a known format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise RowError(f"{where}: the photo {name} cannot be decoded: {reason(error)}") from None


def decode(file: Path | BinaryIO) -> Image.Image:
    """A picture's file as `to_rgb` gives it, decoded only if its header says that this takes no more than 256 MiB.

    Raises:
        Image.DecompressionBombError: it is larger.
        Exception: it is damaged, or a program that draws a picture; Pillow's plugins raise nearly anything.
    """
    with Image.open(file) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            size = f"{width:,} x {height:,} pixels"
            raise Image.DecompressionBombError(f"{size}, and no more than {MOST_PIXELS:,} are decoded; scale it down")
        if image.format == "EPS":
            raise ValueError("PostScript is a program, which is not run; save it as PNG")
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB as people see it: turned as its camera noted, and 16 bits a pixel scaled rather than cut off."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256, "L")
    return image.convert("RGB")


class PhotoCheck:
    """Decodes each photo once, however many rows show it."""

    def __init__(self) -> None:
        self._faults: dict[Photo, str | None] = {}  # to be read after file and row

    def check(self, conversation: Conversation) -> None:
        """Make sure that the photos of a row decode.

        Raises:
            RowError: one does not.
        """
        for photo in conversation.images:
            if photo not in self._faults:
                self._faults[photo] = self._fault(photo)
            if (fault := self._faults[photo]) is not None:
                raise RowError(f"{conversation.where}{fault}")

    @staticmethod
    def _fault(photo: Photo) -> str | None:
        try:
            open_photo(photo, "")
        except RowError as error:
            return str(error)
        return None
