"""What a training objective says of itself."""

from __future__ import annotations

from typing import Protocol

import torch

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.models.head import Head


class Objective(Protocol):
    """A loss over packs of documents.

    The loss of an optimizer step is the mean of its packs' losses by their weights, however the documents are spread
    over packs, accumulation and processes.

    Attributes:
        name: what tells it from other objectives and other settings of it; a resumed run must have the same.
        value_columns: columns of the training rows that hold a number for each document: an advantage, the
            log-probability under a reference model, the id of a pair. `PackedBatch.document_values` has them, in
            float32: ids are exact up to 2^24.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def value_columns(self) -> tuple[str, ...]:
        """See above."""
        ...

    def weight(self, example: Example) -> float:
        """The weight of a document in the mean loss of its step, above 0; that of a pack is their sum."""
        ...

    def loss(self, hidden: torch.Tensor, batch: PackedBatch, head: Head) -> torch.Tensor:
        """The mean loss over a pack's weight, a finite scalar; in a repeated pack no target is left.

        Args:
            hidden: the last hidden states of the pack, [tokens, hidden].
            batch: the pack; its `document_ids` say which document a token belongs to.
            head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
        """
        ...

    def loss_at(self, states: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        """A loss over the supervised positions alone, [positions, hidden] and int64 [positions].

        What a step's memory is counted with, on tensors without values.
        """
        ...

    def computes_logits_twice(self, supervised: int) -> bool:
        """Whether the logits of so many supervised tokens are computed again in the backward pass."""
        ...
