"""What a caller gives as prompts, photos and choices, as the lists that the model works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from mmtune.common.errors import UserError, brief
from mmtune.data.images import open_photo

T = TypeVar("T")
Photo: TypeAlias = Image.Image | str | Path | bytes | np.ndarray
"""Pillow's, the path of a file, the bytes of one, or uint8 [height, width] (gray) or [height, width, 3 or 4]."""
Photos: TypeAlias = Photo | Sequence[Photo] | None
"""Those of one prompt: one, several, or none."""

_ONE = (
    Image.Image,
    str,
    Path,
    bytes,
    bytearray,
    memoryview,
    np.ndarray,
    Mapping,
)  # photos, and what is no list of them
_CHAT = "a conversation goes to mmtune.generation.chat.Chat, turn by turn"


def one_text(value: Any, name: str) -> str:
    """The text itself.

    Args:
        value: what was given.
        name: what it is, for messages.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str):
        return str(value)  # of its subclasses, numpy's too, the text
    if isinstance(value, Mapping):
        raise UserError(f"{name} is a {_kind(value)}, with {_keys(value)}; give its text as a string; {_CHAT}")
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        raise UserError(f"{name} is a {_kind(value)}; give a string; {_CHAT}")
    raise UserError(f"{name} is a {_kind(value)}; give a string")


def many_texts(value: Any, name: str, one: str) -> list[str]:
    """Several texts.

    Args:
        value: what was given.
        name: what they are, for messages: `stop`.
        one: what one of them is: `stop string`.

    Raises:
        UserError: it is no list of strings.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UserError(f"{name}: is a {_kind(value)}; give a list of strings")
    return [one_text(text, f"{one} {number}") for number, text in enumerate(value, 1)]


def stop_strings(stop: Any) -> list[str]:
    """One stop string or several, as a list.

    Raises:
        UserError: it is neither.
    """
    return [stop] if isinstance(stop, str) else many_texts(stop, "stop", "stop string")


def whole_number(value: Any, name: str, least: int) -> int:
    """The number itself.

    Raises:
        UserError: it is no whole number, or below the least.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name} {brief(repr(value))}: give a whole number of at least {least}")
    return int(value)


_LEAST = 0.001  # of a temperature and of top_p; far below, float32 has no number left for the likelihoods


def check_sampling(options: Mapping[str, Any]) -> None:
    """Refuse a temperature or a top_p that tokens cannot be drawn with; None is the default of whoever draws.

    Raises:
        UserError: the temperature is neither 0 nor a number from 0.001 to 10, or top_p no number from 0.001 to 1.
    """
    temperature, top_p = options.get("temperature"), options.get("top_p")
    if temperature is not None and not (_is_real(temperature) and (temperature == 0 or _LEAST <= temperature <= 10)):
        said = f"give a number from 0 (always the likeliest) to 10; above 0, at least {_LEAST}"
        raise UserError(f"temperature {brief(repr(temperature))}: {said}")
    if top_p is not None and not (_is_real(top_p) and _LEAST <= top_p <= 1):
        raise UserError(f"top_p {brief(repr(top_p))}: give a number above 0 (at least {_LEAST}), up to 1 (all tokens)")


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class Prompts:
    """The prompts of one call, each with its photos.

    A photo that several prompts name by the same path, or give as the same object, is opened once and stays the same
    object, which the model computes once.

    Attributes:
        texts: of all.
        photos: of each.
        single: whether one string was given in place of a list: the caller wants one answer.
    """

    def __init__(self, prompts: Any, images: Any = None) -> None:
        """
        Args:
            prompts: one string or a list of them.
            images: to one string a photo, a list of photos or None; to a list, for each prompt one of these.

        Raises:
            UserError: they are something else, differ in number, or a photo cannot be read.
        """
        self.single = isinstance(prompts, str)
        if self.single or isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
            self.texts = [one_text(prompts, "the prompt")]
        else:
            self.texts = many_texts(prompts, "prompts", "prompt")
        self._opened: dict[Any, Image.Image] = {}
        self._given: list[Any] = []  # keeps alive what `_opened` knows by its id
        self.photos = self._photos_of_each(images)

    def returned(self, results: list[T]) -> Any:
        """What the caller gets: a list, or of one string the one result."""
        return results[0] if self.single else results

    def _photos_of_each(self, images: Any) -> list[list[Image.Image]]:
        if images is None:
            return [[] for _ in self.texts]
        if self.single:
            return [self._photos(images, "the prompt")]
        if isinstance(images, _ONE) or not isinstance(images, Iterable):
            raise UserError(f"images: is a {_kind(images)} for a list of prompts; give a list of photos per prompt")
        each = list(images)
        if len(each) != len(self.texts):
            raise UserError(f"{len(self.texts)} prompts but photos for {len(each)}; give a list of photos per prompt")
        return [self._photos(given, f"prompt {number}") for number, given in enumerate(each, 1)]

    def _photos(self, given: Any, where: str) -> list[Image.Image]:
        if given is None:
            return []
        if isinstance(given, _ONE) or not isinstance(given, Iterable) or hasattr(given, "read"):
            return [self._photo(given, f"the photo of {where}", where)]
        return [self._photo(one, f"photo {number} of {where}", where) for number, one in enumerate(given, 1)]

    def _photo(self, given: Any, name: str, where: str) -> Image.Image:
        if isinstance(given, Image.Image):
            return given
        if isinstance(given, bytearray | memoryview):
            given = bytes(given)
        known = given if isinstance(given, str | Path | bytes) else id(given)
        if known not in self._opened:
            self._opened[known] = _opened(given, name, where)
            self._given.append(given)
        return self._opened[known]


def photos_of_turn(given: Any) -> list[Image.Image]:
    """The photos of one turn: of one, of several or of None.

    Raises:
        UserError: one is something else, or cannot be read.
    """
    return Prompts("", given).photos[0]


def choices_of_each(choices: Any, asked: Prompts) -> list[list[str]]:
    """What may be answered to each prompt.

    Args:
        choices: to one string a list of strings; to a list of prompts, a list of lists.
        asked: the prompts.

    Raises:
        UserError: it is something else, or they differ in number.
    """
    if asked.single:
        return [many_texts(choices, "choices", "choice")]
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Iterable):
        raise UserError(f"choices: is a {_kind(choices)}; give a list of strings per prompt")
    each = list(choices)
    if len(each) != len(asked.texts):
        raise UserError(f"{len(asked.texts)} prompts but choices for {len(each)}; give a list of choices per prompt")
    return [many_texts(given, f"choices of prompt {n}", f"prompt {n}: choice") for n, given in enumerate(each, 1)]


def _opened(given: Any, name: str, where: str) -> Image.Image:
    """A photo that is given otherwise than as Pillow's."""
    if isinstance(given, np.ndarray):
        shape = given.shape
        if given.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise UserError(
                f"{name} is an array of {given.dtype} {list(shape)}; give uint8 [height, width, 3], from 0 to 255"
            )
        return Image.fromarray(given)
    if isinstance(given, str):
        if given.startswith(("http://", "https://", "data:")):
            raise UserError(f"{name} is the address {brief(given)}; nothing is fetched: give the file or its bytes")
        given = Path(given)
    if isinstance(given, Path | bytes):
        return open_photo(given, where)
    if isinstance(given, Mapping):
        raise UserError(f"{name} is a {_kind(given)}, with {_keys(given)}; give the photo itself")
    raise UserError(f"{name} is a {_kind(given)}; give a Pillow image, a path, the bytes of a file or a numpy array")


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _keys(value: Mapping[Any, Any]) -> str:
    return f"the keys {', '.join(map(str, list(value)[:4]))}" if value else "no keys"
