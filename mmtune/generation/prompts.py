"""Prompts as text, as token ids and as embeddings.

TokenIds show which tokens and images are the same; embeddings are the input of the language model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from mmtune.common.devices import on_device
from mmtune.common.errors import UserError, brief
from mmtune.data.conversation import IMAGE_PLACEHOLDER, MARK_AS_TEXT
from mmtune.data.encoding import IMAGE_TOKEN, encode_text, missing_row
from mmtune.data.images import to_rgb
from mmtune.data.rendering.templates import Rendered
from mmtune.interfaces import Prompt
from mmtune.models.composed import ComposedModel
from mmtune.models.decoding.prefixes import TokenIds

_IMAGES_AT_ONCE = 16  # through the tower


def prompt_text(model: ComposedModel, prompt: Prompt, number: int, *, thinking: bool = False) -> str:
    """Render a prompt in the model's template, up to the beginning of the answer, or of the thought before it.

    An `<image>` outside the user's turns is text. If a thought comes first, the response prefix is left out.

    Args:
        model: model that receives the prompt.
        prompt: its images are only counted.
        number: number of the prompt in the call, from 0, for messages.
        thinking: whether a thought comes first.

    Raises:
        UserError: images and `<image>` marks differ in number, the model has no vision tower for the images, or its
            template has no thoughts.
    """
    marks = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in prompt.turns if turn.role == "user")
    if marks != len(prompt.images):
        raise UserError(f"prompt {number + 1}: {marks} {IMAGE_PLACEHOLDER} mark(s) but {len(prompt.images)} photo(s)")
    if prompt.images and model.tower is None:
        raise UserError(f"prompt {number + 1} has a photo, but {model.name} has no vision tower")
    turns = [
        turn if turn.role == "user" else dataclasses.replace(turn, text=as_text(turn.text)) for turn in prompt.turns
    ]
    return model.template.prompt(
        turns, response_prefix="" if thinking else as_text(prompt.response_prefix), thinking=thinking
    )


def as_text(text: str) -> str:
    """Return a text in which `<image>` does not stand for an image."""
    return text.replace(IMAGE_PLACEHOLDER, MARK_AS_TEXT)


class PromptEncoder:
    """Encoder of one call's prompts. An image of several prompts (the same object) is encoded once.

    Attributes:
        tokens_per_image: number of tokens of an image.
    """

    def __init__(self, model: ComposedModel) -> None:
        self._model = model
        self.tokens_per_image = model.tower.shape.num_tokens if model.tower else 0
        self._numbers: dict[int, int] = {}  # of photos, by the id of the object
        self._images: list[Image.Image] = []
        self._features: dict[int, torch.Tensor] = {}

    def token_ids(self, text: str, images: Sequence[Image.Image] = ()) -> TokenIds:
        """Convert a rendered prompt with its images to token ids; the ids of image positions are below 0.

        Raises:
            UserError: the model's embedding has no row for a token of it.
        """
        tokenizer = self._model.tokenizer
        ids, _ = encode_text(Rendered(text, ()), tokenizer, tokens_per_image=self.tokens_per_image)
        self.check(ids, text)
        found = ids.astype(np.int64)
        if images:
            firsts = np.array([self._number(image) * self.tokens_per_image for image in images])
            places = firsts[:, None] + np.arange(self.tokens_per_image)
            found[found == IMAGE_TOKEN] = -1 - places.ravel()
        return found

    def check(self, ids: np.ndarray, text: str) -> None:
        """Check that the embedding has a row for each token of a text.

        Raises:
            UserError: a token has no row.
        """
        rows = len(self._model.base_language.get_input_embeddings().weight)
        if fault := missing_row(ids, rows, self._model.tokenizer):
            raise UserError(f"{brief(text)!r}: {fault}")

    def embed(self, token_ids: TokenIds) -> torch.Tensor:
        """Compute the embeddings [tokens, hidden]; the tower runs only for images that were not encoded before."""
        words = self._model.base_language.get_input_embeddings()
        embeddings: torch.Tensor = words(on_device(token_ids.clip(0), self._model.device))
        shown = np.flatnonzero(token_ids < 0)
        if len(shown):
            numbers, places = np.divmod(-1 - token_ids[shown], self.tokens_per_image)
            self._see(dict.fromkeys(numbers.tolist()))
            features = torch.stack([self._features[n][p] for n, p in zip(numbers.tolist(), places, strict=True)])
            embeddings[on_device(shown, embeddings.device)] = features.to(embeddings.dtype)
        return embeddings

    def _number(self, image: Image.Image) -> int:
        if id(image) not in self._numbers:
            self._numbers[id(image)] = len(self._images)
            self._images.append(image)
        return self._numbers[id(image)]

    def _see(self, numbers: Sequence[int] | dict[int, None]) -> None:
        """Compute the features of images that have none yet."""
        tower, projector = self._model.tower, self._model.projector
        assert tower is not None
        assert projector is not None
        new = [number for number in numbers if number not in self._features]
        for start in range(0, len(new), _IMAGES_AT_ONCE):
            some = new[start : start + _IMAGES_AT_ONCE]
            pixels = torch.stack([tower.preprocess(to_rgb(self._images[number])) for number in some])
            features = projector(tower(on_device(pixels, self._model.device)).to(next(projector.parameters()).dtype))
            self._features.update(zip(some, features, strict=True))
