"""Training loader: a plan of packs that is the same in all processes, and that resumes where it stopped."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch, pack
from mmtune.data.encoding import Example, ModelInputs, count_supervised


class PackDataset(Dataset[PackedBatch]):
    """Dataset of packs, by pack number."""

    def __init__(self, examples: Sequence[Example], packs: list[list[int]], inputs: ModelInputs) -> None:
        self.examples, self.packs, self.inputs = examples, packs, inputs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, number: int) -> PackedBatch:
        return pack([self.examples[i] for i in self.packs[number]], self.inputs)

    @functools.cached_property
    def supervised(self) -> np.ndarray:
        """Number of supervised tokens of each pack: int64 [packs]."""
        return self._summed(count_supervised)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Weight of each pack in the mean loss of a step: [packs].

        Raises:
            UserError: a document has a weight that is not above 0, or not finite.
        """
        return self.supervised if self.inputs.weight is count_supervised else self._summed(self._weight)

    def _weight(self, example: Example) -> float:
        weight = self.inputs.weight(example)
        if not 0 < weight < math.inf:
            raise UserError(f"{example.where}: the objective gives it the weight {weight}; leave out rows without one")
        return weight

    def _summed(self, of: Callable[[Example], float]) -> np.ndarray:
        each = list(map(of, self.examples))
        return np.asarray([sum(each[i] for i in pack) for pack in self.packs])

    @property
    def longest(self) -> int:
        """Number of the pack with the most tokens; of several, the one with the most supervised tokens."""
        lengths = [len(example) for example in self.examples]
        tokens = [sum(lengths[i] for i in pack) for pack in self.packs]
        return max(range(len(self)), key=lambda number: (tokens[number], self.supervised[number]))


class EpochOrder:
    """Order of packs in an epoch, for one of several processes; with shuffling, a new order each epoch.

    Every process gets the same number of packs: the first packs of the order fill up the last round, and are not
    trained on there. With shuffling, the very first epoch begins with the pack `longest`, so that a lack of memory
    shows at the first step.
    """

    def __init__(
        self, packs: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1, longest: int | None = None
    ) -> None:
        self.packs, self.seed, self.shuffle, self.rank, self.world = packs, seed, shuffle, rank, world
        self.longest = longest
        self.epoch = 0
        self.start = 0
        self.announced: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; Lightning calls it before each pass, also without a restored state."""
        self.announced = epoch

    def __len__(self) -> int:
        return -(-self.packs // self.world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.everyones()[:, self.rank][self.start :].tolist())

    def everyones(self) -> np.ndarray:
        """Return the packs of all processes in this epoch: int64 [rounds, processes]."""
        order = np.arange(self.packs)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
            if self.longest is not None and self.epoch == 0:
                place = int(np.flatnonzero(order == self.longest)[0])
                order[[0, place]] = order[[place, 0]]
        return np.resize(order, (len(self), self.world))

    def repeated(self) -> np.ndarray:
        """Return which packs of `everyones` only fill up the last round: bool [rounds, processes]."""
        return (np.arange(len(self) * self.world) >= self.packs).reshape(len(self), self.world)


class PackLoader(DataLoader[PackedBatch]):
    """Loader of packs that can be stopped and resumed in the middle of an epoch.

    Each batch has the weight of its optimizer step (`step_weight`): the sum over its round and the other rounds of the
    same gradient accumulation, over all processes. Where an epoch is cut short, `rounds` is the number of rounds that
    are trained.

    The loader counts epochs itself unless `EpochOrder.set_epoch` is called (Lightning calls it). A state loaded from a
    checkpoint continues the pass it was taken in. Lightning saves and restores the state with the fit loop.
    """

    def __init__(
        self,
        dataset: PackDataset,
        order: EpochOrder,
        *,
        num_workers: int = 0,
        rounds_per_step: int = 1,
        rounds: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            sampler=order,  # type: ignore[arg-type]  # torch asks for an Iterable, which EpochOrder is
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            # a generator of its own, so that loading data draws nothing from the training's random numbers
            generator=torch.Generator().manual_seed(order.seed),
        )
        self.order, self.rounds_per_step, self.rounds = order, rounds_per_step, rounds
        self._delivered = 0
        # whether the next pass continues at (epoch, delivered) instead of beginning an epoch
        self._continue = True

    def __iter__(self) -> Iterator[PackedBatch]:  # type: ignore[override]
        order = self.order
        unfinished = self._continue and self._delivered < len(order)
        epoch = order.epoch + (not unfinished) if order.announced is None else order.announced
        if not unfinished or epoch != order.epoch:
            self._delivered = 0
        order.epoch, order.start, order.announced = epoch, self._delivered, None
        self._continue = False
        packs: PackDataset = self.dataset  # type: ignore[assignment]
        repeated = order.repeated()
        weights = np.where(repeated, 0, packs.weights[order.everyones()]).sum(axis=1)[: self.rounds]
        steps = np.add.reduceat(weights, np.arange(0, len(weights), self.rounds_per_step))
        for batch in super().__iter__():
            # a trainer that is to stop early may still ask for a round ahead
            step = min(self._delivered // self.rounds_per_step, len(steps) - 1)
            if repeated[self._delivered, order.rank]:
                batch = batch.as_repeated()
            self._delivered += 1
            yield replace(batch, step_weight=steps[step].item())

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the number of packs delivered in it, and the processes and rounds per step."""
        return {
            "epoch": self.order.epoch,
            "delivered": self._delivered,
            "world": self.order.world,
            "rounds_per_step": self.rounds_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue the one the state was taken in.

        Raises:
            UserError: the state was taken with another number of processes or of packs in a step, so that its
                position does not apply.
        """
        then, now = (state["world"], state["rounds_per_step"]), (self.order.world, self.rounds_per_step)
        if then != now:
            raise UserError(
                f"the run to resume had {then[0]} process(es) with {then[1]} pack(s) of each in a step, and this one "
                f"has {now[0]} with {now[1]}; give the same --trainer.devices, --trainer.num_nodes and "
                "--trainer.accumulate_grad_batches, or another --out"
            )
        self.order.epoch, self._delivered = state["epoch"], state["delivered"]
        self._continue = True
