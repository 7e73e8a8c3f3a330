"""Conversion of a caller's prompts, images and choices to the lists that the model takes."""

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
)  # types of one image, and types that are no list of images
_CHAT = "a conversation goes into mmtune.Prompt, as its turns"


def one_text(value: Any, name: str) -> str:
    """Check that a value is a string, and return it.

    Args:
        value: value from the caller.
        name: name of the value, for messages.

    Raises:
        UserError: it is no string.
    """
    if isinstance(value, str):
        return str(value)  # converts subclasses, such as numpy's, to plain strings
    if isinstance(value, Mapping):
        raise UserError(f"{name} is a {_kind(value)}, with {_keys(value)}; give its text as a string; {_CHAT}")
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        raise UserError(f"{name} is a {_kind(value)}; give a string; {_CHAT}")
    raise UserError(f"{name} is a {_kind(value)}; give a string")


def many_texts(value: Any, name: str, one: str) -> list[str]:
    """Check that a value is a list of strings, and return it.

    Args:
        value: value from the caller.
        name: name of the list, for messages: `stop`.
        one: name of one element, for messages: `stop string`.

    Raises:
        UserError: it is no list of strings.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UserError(f"{name}: is a {_kind(value)}; give a list of strings")
    return [one_text(text, f"{one} {number}") for number, text in enumerate(value, 1)]


def stop_strings(stop: Any) -> list[str]:
    """Return one stop string or several as a list.

    Raises:
        UserError: it is neither a string nor a list of strings.
    """
    return [stop] if isinstance(stop, str) else many_texts(stop, "stop", "stop string")


class Prompts:
    """Prompts of one call, with their images opened.

    An image that several prompts name by the same path, or give as the same object, is opened once and stays the same
    object, which the model encodes once.

    Attributes:
        prompts: list of all prompts.
        single: whether the call has one prompt in place of a list, and so returns one result.
    """

    def __init__(
        self, prompts: Any, images: Any = None, *, system: str | None = None, response_prefix: str = ""
    ) -> None:
        """
        Args:
            prompts: text of the user, one string or a list of them; or one `Prompt`, or a list.
            images: for one string, an image, a list of images or None; for a list, one of these for each prompt.
            system: a system prompt in place of the template's own, for strings.
            response_prefix: beginning of the answers, for strings.

        Raises:
            UserError: a value has another type, the turns of a prompt have another order, prompts and images differ
                in number, or an image cannot be read.
        """
        self._opened: dict[Any, Image.Image] = {}
        self._given: list[Any] = []  # keeps the objects alive whose ids are keys of `_opened`
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
        """Return the results in the caller's form: a list, or the one result of a single prompt."""
        return results[0] if self.single else results

    def _checked(self, prompt: Prompt, where: str) -> Prompt:
        """Check the turns of a prompt, and return it with its images opened."""
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
    """Open the images of one turn, given as one image, several or None.

    Raises:
        UserError: an image has another type, or cannot be read.
    """
    return list(Prompts("", given).prompts[0].images)


def choices_of_each(choices: Any, asked: Prompts) -> list[list[str]]:
    """Return the choices of each prompt.

    Args:
        choices: for one prompt, a list of strings; for a list of prompts, a list of lists.
        asked: the prompts.

    Raises:
        UserError: a value has another type, or prompts and choices differ in number.
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
    """Open an image that is not given as a Pillow image."""
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
