"""Prompts as keys and embeddings: which tokens and photos are the same, and what they are to the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mmtune.data.conversation import to_rgb
from mmtune.data.encoding import IMAGE_TOKEN, encode_text
from mmtune.data.templates import Rendered
from mmtune.models.prefixes import Keys

if TYPE_CHECKING:
    from mmtune.models.vlm import VisionLanguageModel

_PHOTOS_AT_ONCE = 16  # through the tower


class PromptEncoder:
    """The prompts of one call. A photo that several of them show (the same object) goes through the tower once."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self._tokens_per_photo = model.tower.shape.num_tokens if model.tower else 0
        self._numbers: dict[int, int] = {}  # of photos, by the id of the object
        self._photos: list[Image.Image] = []
        self._features: dict[int, torch.Tensor] = {}

    def keys(self, text: str, photos: Sequence[Image.Image] = ()) -> Keys:
        """A rendered prompt with its photos as keys: token ids, and places of photos below 0."""
        ids, _ = encode_text(Rendered(text, ()), self._model.tokenizer, tokens_per_photo=self._tokens_per_photo)
        keys = ids.astype(np.int64)
        if photos:
            firsts = np.array([self._number(photo) * self._tokens_per_photo for photo in photos])
            places = firsts[:, None] + np.arange(self._tokens_per_photo)
            keys[keys == IMAGE_TOKEN] = -1 - places.ravel()
        return keys

    def embed(self, keys: Keys) -> torch.Tensor:
        """The embeddings [tokens, hidden]; the tower runs for photos that were not asked for before."""
        words = self._model.base_language.get_input_embeddings()
        embeddings: torch.Tensor = words(torch.from_numpy(keys.clip(0)).to(self._model.device))
        shown = np.flatnonzero(keys < 0)
        if len(shown):
            numbers, places = np.divmod(-1 - keys[shown], self._tokens_per_photo)
            self._see(dict.fromkeys(numbers.tolist()))
            features = torch.stack([self._features[n][p] for n, p in zip(numbers.tolist(), places, strict=True)])
            embeddings[torch.from_numpy(shown).to(embeddings.device)] = features.to(embeddings.dtype)
        return embeddings

    def _number(self, photo: Image.Image) -> int:
        if id(photo) not in self._numbers:
            self._numbers[id(photo)] = len(self._photos)
            self._photos.append(photo)
        return self._numbers[id(photo)]

    def _see(self, numbers: Sequence[int] | dict[int, None]) -> None:
        """Compute the features of photos that have none yet."""
        tower, projector = self._model.tower, self._model.projector
        assert tower is not None
        assert projector is not None
        new = [number for number in numbers if number not in self._features]
        for start in range(0, len(new), _PHOTOS_AT_ONCE):
            some = new[start : start + _PHOTOS_AT_ONCE]
            pixels = torch.stack([tower.preprocess(to_rgb(self._photos[number])) for number in some])
            features = projector(tower(pixels.to(self._model.device)).to(next(projector.parameters()).dtype))
            self._features.update(zip(some, features, strict=True))
