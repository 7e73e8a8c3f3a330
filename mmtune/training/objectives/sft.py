"""Supervised fine-tuning: cross entropy of the answer tokens."""

from __future__ import annotations

import torch

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example, count_supervised
from mmtune.models.head import Head
from mmtune.training.objectives.token_loss import CHUNK, chunked_loss, supervised_loss


class SupervisedObjective:
    """Mean cross entropy over the supervised tokens; see `Objective`."""

    name = "sft"
    value_columns: tuple[str, ...] = ()

    def weight(self, example: Example) -> float:
        """Return the number of supervised tokens of a document."""
        return count_supervised(example)

    def loss(self, hidden: torch.Tensor, batch: PackedBatch, head: Head) -> torch.Tensor:
        """Compute the loss of a pack; see `Objective.loss`."""
        return supervised_loss(hidden, batch.targets, head, positions=batch.layout.supervised)

    def loss_at(self, states: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        """Compute the loss at supervised positions; see `Objective.loss_at`."""
        return chunked_loss(states, targets, head)

    def computes_logits_twice(self, supervised: int) -> bool:
        """Return whether there are several chunks, whose logits are not kept; see `Objective.computes_logits_twice`."""
        return supervised > CHUNK
