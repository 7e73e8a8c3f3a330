"""Result of the trial of a language model: how its figures are computed, or why they cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Way = Literal["packed", "one by one"]


@dataclass(frozen=True, slots=True)
class Fitness:
    """How a language model is computed.

    Attributes:
        way: `packed`: documents and prompts share passes, and none sees another; `one by one`: each goes through the
            model's own code alone.
        reason: why it is not packed.
        body: the name of the module that gives the hidden states.
        plain_head: the output layer is all that follows the hidden states.
        by_embeddings: it takes embeddings in place of token ids.
        sees: it answers from embeddings, too, and so can be given photos.
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
        """What to say of a model that is not packed, and costs more for it."""
        return f"{name}: documents and prompts are computed one by one: {self.reason}"


class UnfitError(Exception):
    """A language model whose own figures cannot be had; the message says why."""
