"""Interface of training objectives."""

from __future__ import annotations

from typing import Protocol

import torch

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.models.head import Head


class Objective(Protocol):
    """Training objective: a loss over packs of documents.

    The loss of an optimizer step is the weighted mean of its packs' losses. It does not depend on how the documents are
    distributed over packs, accumulation and processes.

    Attributes:
        name: unique name of the objective with its settings; a resumed run must have the same name.
        value_columns: columns of the training rows that hold a number for each document: an advantage, the
            log-probability under a reference model, the id of a pair. `PackedBatch.document_values` holds them,
            in float32: ids are exact up to 2^24.
    """

    @property
    def name(self) -> str:
        """Name of the objective; see the class attributes."""
        ...

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Columns that the objective reads; see the class attributes."""
        ...

    def weight(self, example: Example) -> float:
        """Return the weight of a document in the mean loss of its step, above 0; a pack's weight is their sum."""
        ...

    def loss(self, hidden: torch.Tensor, batch: PackedBatch, head: Head) -> torch.Tensor:
        """Compute the mean loss over a pack's weight, a finite scalar; a repeated pack has no targets.

        Args:
            hidden: the last hidden states of the pack, [tokens, hidden].
            batch: the pack; its `document_ids` map each token to its document.
            head: computes the logits [rows, vocabulary] of hidden states [rows, hidden].
        """
        ...

    def loss_at(self, states: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        """Compute a loss over only the supervised positions, [positions, hidden] and int64 [positions].

        It is used to estimate the memory of a step, on tensors without values.
        """
        ...

    def computes_logits_twice(self, supervised: int) -> bool:
        """Return whether the logits of this many supervised tokens are computed again in the backward pass."""
        ...
