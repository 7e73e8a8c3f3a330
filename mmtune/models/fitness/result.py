"""Result of the trial of a language model: how it is computed, or why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Way = Literal["packed", "one by one"]


@dataclass(frozen=True, slots=True)
class Fitness:
    """Way to compute a language model, found by its trial.

    Attributes:
        way: `packed`: documents and prompts share passes, and none attends to another; `one by one`: each has a pass of
            its own through the model's code.
        reason: why the model is not packed; empty if it is.
        body: name of the module that computes the hidden states.
        plain_head: whether the output layer alone follows the hidden states.
        by_embeddings: whether the model accepts embeddings in place of token ids.
        sees: whether the model also generates from embeddings, and so accepts images.
    """

    way: Way
    reason: str
    body: str
    plain_head: bool
    by_embeddings: bool
    sees: bool

    @property
    def packed(self) -> bool:
        """Whether documents and prompts share passes."""
        return self.way == "packed"

    def told(self, name: str) -> str:
        """Return a message that a model is not packed, and so costs more time, with the reason."""
        return f"{name}: documents and prompts are computed one by one: {self.reason}"


class UnfitError(Exception):
    """Language model whose results cannot be reproduced; the message is the reason."""
