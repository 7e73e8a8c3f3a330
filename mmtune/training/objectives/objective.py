"""What a training objective says of itself."""

from __future__ import annotations

from typing import Protocol

import torch

from mmtune.data.collate import PackedBatch
from mmtune.models.head import Head


class Objective(Protocol):
    """A loss over packs of documents.

    The module weighs a pack's loss by its supervised tokens, so that the loss of an optimizer step is the mean over all
    tokens that the step learns from, however they are spread over packs and processes.
    """

    def loss(self, hidden: torch.Tensor, batch: PackedBatch, head: Head) -> torch.Tensor:
        """The mean loss over a pack's supervised tokens, a scalar.

        Args:
            hidden: the last hidden states of the pack, [tokens, hidden].
            batch: the pack; its `document_ids` say which document a token belongs to.
            head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
        """
        ...

    def loss_at(self, states: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        """The same for the supervised positions alone, [positions, hidden] and int64 [positions].

        What a step's memory is counted with, on tensors without values.
        """
        ...

    def computes_logits_twice(self, supervised: int) -> bool:
        """Whether the logits of so many supervised tokens are computed again in the backward pass."""
        ...
