"""The training loader: a plan of packs that is the same for everyone, and that resumes where it stopped."""

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
from mmtune.data.encoding import IGNORED, Example, ModelInputs, count_supervised


class PackDataset(Dataset[PackedBatch]):
    """Packs by number."""

    def __init__(self, examples: Sequence[Example], packs: list[list[int]], inputs: ModelInputs) -> None:
        self.examples, self.packs, self.inputs = examples, packs, inputs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, number: int) -> PackedBatch:
        return pack([self.examples[i] for i in self.packs[number]], self.inputs)

    @functools.cached_property
    def supervised(self) -> np.ndarray:
        """How many tokens of each pack are learnt: int64 [packs]."""
        return self._summed(count_supervised)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """The weight of each pack in the mean loss of a step: [packs].

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
        """The pack with most tokens; of several, the one with most to learn."""
        lengths = [len(example) for example in self.examples]
        tokens = [sum(lengths[i] for i in pack) for pack in self.packs]
        return max(range(len(self)), key=lambda number: (tokens[number], self.supervised[number]))


class EpochOrder:
    """The order of packs in an epoch, for one of several processes; the same packs in a new order each epoch.

    Every process gets equally many: the first packs of the order fill up the last round, and nothing is learnt from
    them there. Shuffled, the very first epoch begins with the pack `longest`, so that memory that does not suffice is
    known at the first step.
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
        """Lightning says before each pass which epoch it is, also where it restores no loader's state."""
        self.announced = epoch

    def __len__(self) -> int:
        return -(-self.packs // self.world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.everyones()[:, self.rank][self.start :].tolist())

    def everyones(self) -> np.ndarray:
        """The packs of all processes in this epoch: int64 [rounds, processes]."""
        order = np.arange(self.packs)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
            if self.longest is not None and self.epoch == 0:
                place = int(np.flatnonzero(order == self.longest)[0])
                order[[0, place]] = order[[place, 0]]
        return np.resize(order, (len(self), self.world))

    def repeated(self) -> np.ndarray:
        """Which of `everyones` only fill up the last round: bool [rounds, processes]."""
        return (np.arange(len(self) * self.world) >= self.packs).reshape(len(self), self.world)


class PackLoader(DataLoader[PackedBatch]):
    """A loader of packs that can be stopped and resumed in the middle of an epoch.

    Each pack is told the weight of its optimizer step, that is of its round and the others of the same accumulation, of
    all processes together. Where an epoch is cut short, `rounds` is how many are trained.

    It counts its own epochs unless it is told them (Lightning tells), and a state loaded from a checkpoint
    continues the pass it was taken in. Lightning saves and restores the state with the fit loop.
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
        # whether the next pass goes on at (epoch, delivered) rather than beginning an epoch
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
                batch = replace(batch, targets=torch.full_like(batch.targets, IGNORED), repeated=True)
            self._delivered += 1
            yield replace(batch, step_weight=steps[step].item())

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """The pass and how far it has come."""
        return {
            "epoch": self.order.epoch,
            "delivered": self._delivered,
            "world": self.order.world,
            "rounds_per_step": self.rounds_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue the one the state was taken in.

        Raises:
            UserError: it was taken with other numbers of processes or of packs in a step, and the place is another.
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
