"""What a caller gives as prompts, photos and choices, as the lists that the model works with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from mmtune.common.errors import UserError, brief
from mmtune.data.images import load_image
from mmtune.interfaces import Prompt

T = TypeVar("T")
ImageInput: TypeAlias = Image.Image | str | Path | bytes | np.ndarray
"""Pillow's, the path of a file, the bytes of one, or uint8 [height, width] (gray) or [height, width, 3 or 4]."""
ImageInputs: TypeAlias = ImageInput | Sequence[ImageInput] | None
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
_CHAT = "a conversation goes into mmtune.Prompt, as its turns"


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


class Prompts:
    """The prompts of one call, with their images opened.

    An image that several prompts name by the same path, or give as the same object, is opened once and stays the same
    object, which the model computes once.

    Attributes:
        prompts: of all.
        single: whether one was given in place of a list: the caller wants one result.
    """

    def __init__(
        self, prompts: Any, images: Any = None, *, system: str | None = None, response_prefix: str = ""
    ) -> None:
        """
        Args:
            prompts: what the user says, one string or a list of them; or one `Prompt`, or a list.
            images: to one string an image, a list of images or None; to a list, for each prompt one of these.
            system: a system prompt in place of the template's own, for strings.
            response_prefix: how the answers begin, for strings.

        Raises:
            UserError: they are something else, differ in number, or an image cannot be read.
        """
        self._opened: dict[Any, Image.Image] = {}
        self._given: list[Any] = []  # keeps alive what `_opened` knows by its id
        self.single = isinstance(prompts, str | Prompt)
        given = [prompts] if isinstance(prompts, Prompt) else prompts
        if isinstance(given, list | tuple) and given and all(isinstance(one, Prompt) for one in given):
            self.prompts = [self._checked(one, f"prompt {number}") for number, one in enumerate(given, 1)]
            return
        if self.single or isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
            texts = [one_text(prompts, "the prompt")]
        else:
            texts = many_texts(prompts, "prompts", "prompt")
        shown = self._images_of_each(images, len(texts))
        system = None if system is None else one_text(system, "system")
        prefix = one_text(response_prefix, "response_prefix")
        self.prompts = [
            Prompt.of(text, images, system=system, response_prefix=prefix)
            for text, images in zip(texts, shown, strict=True)
        ]

    def returned(self, results: list[T]) -> Any:
        """What the caller gets: a list, or of one prompt the one result."""
        return results[0] if self.single else results

    def _checked(self, prompt: Prompt, where: str) -> Prompt:
        """A prompt whose turns are what they should be, with its images opened."""
        roles = [turn.role for turn in prompt.turns]
        dialogue = roles[1:] if roles[:1] == ["system"] else roles
        if dialogue != [("user", "assistant")[place % 2] for place in range(len(dialogue))] or len(dialogue) % 2 == 0:
            raise UserError(
                f"{where} has the turns {', '.join(roles) or 'none'}; give an optional system turn, then user and "
                "assistant in alternation, the user first and last"
            )
        for turn in prompt.turns:
            one_text(turn.text, f"the {turn.role}'s text of {where}")
        one_text(prompt.response_prefix, f"response_prefix of {where}")
        return dataclasses.replace(prompt, images=tuple(self._images(prompt.images, where)))

    def _images_of_each(self, images: Any, prompts: int) -> list[list[Image.Image]]:
        if images is None:
            return [[] for _ in range(prompts)]
        if self.single:
            return [self._images(images, "the prompt")]
        if isinstance(images, _ONE) or not isinstance(images, Iterable):
            raise UserError(f"images: is a {_kind(images)} for a list of prompts; give a list of photos per prompt")
        each = list(images)
        if len(each) != prompts:
            raise UserError(f"{prompts} prompts but photos for {len(each)}; give a list of photos per prompt")
        return [self._images(given, f"prompt {number}") for number, given in enumerate(each, 1)]

    def _images(self, given: Any, where: str) -> list[Image.Image]:
        if given is None:
            return []
        if isinstance(given, _ONE) or not isinstance(given, Iterable) or hasattr(given, "read"):
            return [self._image(given, f"the photo of {where}", where)]
        return [self._image(one, f"photo {number} of {where}", where) for number, one in enumerate(given, 1)]

    def _image(self, given: Any, name: str, where: str) -> Image.Image:
        if isinstance(given, Image.Image):
            return given
        if isinstance(given, bytearray | memoryview):
            given = bytes(given)
        known = given if isinstance(given, str | Path | bytes) else id(given)
        if known not in self._opened:
            self._opened[known] = _opened(given, name, where)
            self._given.append(given)
        return self._opened[known]


def images_of_turn(given: Any) -> list[Image.Image]:
    """The photos of one turn: of one, of several or of None.

    Raises:
        UserError: one is something else, or cannot be read.
    """
    return list(Prompts("", given).prompts[0].images)


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
    if len(each) != len(asked.prompts):
        raise UserError(f"{len(asked.prompts)} prompts but choices for {len(each)}; give a list of choices per prompt")
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
        return load_image(given, where)
    if isinstance(given, Mapping):
        raise UserError(f"{name} is a {_kind(given)}, with {_keys(given)}; give the photo itself")
    raise UserError(f"{name} is a {_kind(given)}; give a Pillow image, a path, the bytes of a file or a numpy array")


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _keys(value: Mapping[Any, Any]) -> str:
    return f"the keys {', '.join(map(str, list(value)[:4]))}" if value else "no keys"
