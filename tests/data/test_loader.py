"""The order of packs: the same for everyone, new each epoch, and continued where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example, ModelInputs
from mmtune.data.loader import EpochOrder, PackDataset, PackLoader


def loader(packs: int = 11, *, seed: int = 3, shuffle: bool = True, workers: int = 0) -> PackLoader:
    """A loader whose pack number n holds the document "n"."""
    examples = [
        Example(np.asarray([n, n + 1], dtype=np.int32), np.asarray([False, True]), (), str(n)) for n in range(packs)
    ]
    dataset = PackDataset(examples, [[n] for n in range(packs)], ModelInputs(None, None))  # type: ignore[arg-type]
    return PackLoader(dataset, EpochOrder(packs, seed=seed, shuffle=shuffle), num_workers=workers)


def shared(packs: int, world: int, *, rounds_per_step: int = 1, rounds: int | None = None) -> list[PackLoader]:
    """The loaders of several processes; of pack n, n + 1 tokens are learnt."""
    examples = [
        Example(np.arange(n + 2, dtype=np.int32), np.asarray([False] + [True] * (n + 1)), (), str(n))
        for n in range(packs)
    ]
    dataset = PackDataset(examples, [[n] for n in range(packs)], ModelInputs(None, None))  # type: ignore[arg-type]
    orders = [EpochOrder(packs, seed=1, shuffle=True, rank=rank, world=world) for rank in range(world)]
    return [PackLoader(dataset, order, rounds_per_step=rounds_per_step, rounds=rounds) for order in orders]


def numbers(batches: Any) -> list[int]:
    return [int(batch.where[0]) for batch in batches]


def test_every_epoch_has_all_packs_in_an_order_of_its_own() -> None:
    first, second = loader(), loader()
    epochs = [numbers(first) for _ in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs == [numbers(second) for _ in range(3)]
    assert epochs[0] != numbers(loader(seed=4))
    assert len(first) == 11


def test_validation_keeps_its_order_even_after_a_pass_that_was_broken_off() -> None:
    fixed = loader(shuffle=False)
    next(iter(fixed))  # Lightning's sanity check
    assert numbers(fixed) == list(range(11))
    assert numbers(fixed) == list(range(11))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("delivered", [1, 6, 11])
def test_a_pass_is_continued_with_exactly_the_packs_that_remain(workers: int, delivered: int) -> None:
    whole = loader()
    epochs = [numbers(whole) for _ in range(3)]

    stopped = loader(workers=workers)
    numbers(stopped)
    iterator = iter(stopped)
    seen = [int(next(iterator).where[0]) for _ in range(delivered)]
    state = stopped.state_dict()
    assert seen == epochs[1][:delivered]

    resumed = loader(workers=workers)
    resumed.load_state_dict(state)
    rest = numbers(resumed)
    if delivered < 11:
        assert rest == epochs[1][delivered:]
        rest = numbers(resumed)
    assert rest == epochs[2]


@given(packs=st.integers(1, 40), world=st.integers(1, 8), epoch=st.integers(0, 3))
def test_ranks_share_the_packs(packs: int, world: int, epoch: int) -> None:
    """Together all packs, equally many each, none twice but to fill the last round."""
    shares = []
    for rank in range(world):
        order = EpochOrder(packs, seed=1, shuffle=True, rank=rank, world=world)
        order.epoch = epoch
        shares.append(list(order))
        assert len(shares[-1]) == len(order)
    assert len({len(share) for share in shares}) == 1
    assert {n for share in shares for n in share} == set(range(packs))
    assert sum(map(len, shares)) - packs < world


@given(packs=st.integers(1, 40), world=st.integers(1, 8), longest=st.integers(0, 39))
def test_the_longest_pack_is_in_the_first_round_of_the_first_epoch_alone(packs: int, world: int, longest: int) -> None:
    longest %= packs
    order = EpochOrder(packs, seed=1, shuffle=True, world=world, longest=longest)
    first = order.everyones()
    assert first[0, 0] == longest
    assert set(first.flat) == set(range(packs))
    order.epoch = 1
    usual = EpochOrder(packs, seed=1, shuffle=True, world=world)
    usual.epoch = 1
    assert (order.everyones() == usual.everyones()).all()


def test_the_longest_pack_has_most_tokens_then_most_to_learn() -> None:
    def document(length: int, learnt: int) -> Example:
        supervised = np.arange(length) >= length - learnt
        return Example(np.zeros(length, dtype=np.int32), supervised, (), "r")

    examples = [document(4, 2), document(5, 1), document(9, 2), document(9, 4), document(8, 7)]
    packs = [[0, 1], [2], [3], [4]]
    assert PackDataset(examples, packs, ModelInputs(None, None)).longest == 2  # type: ignore[arg-type]


def test_loading_draws_nothing_from_the_trainings_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numbers(loader())
    assert torch.equal(before, torch.get_rng_state())


class Recorder(pl.LightningModule):
    """Learns nothing of use, and notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, batch: PackedBatch, number: int) -> torch.Tensor:
        self.seen += [int(where) for where in batch.where]
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(*callbacks: pl.Callback, **until: int) -> pl.Trainer:
    return pl.Trainer(
        **until,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# (In training measured in steps, Lightning itself trips over checkpoints taken at the end of an epoch.)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("often", "until", "steps"),
    [
        ({"every_n_train_steps": 1}, {"max_steps": 25, "max_epochs": -1}, (4, 10, 11, 12, 22)),
        ({"every_n_train_steps": 1}, {"max_epochs": 3}, (4, 10, 11, 12, 22)),
        ({"save_on_train_epoch_end": True}, {"max_epochs": 3}, (11, 22)),
    ],
)
def test_lightning_continues_a_checkpoint_with_the_packs_that_remain(
    often: Any, until: Any, steps: tuple[int, ...], tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **often)
    whole = Recorder()
    trainer(saving, **until).fit(whole, loader())
    assert whole.seen == [n for order in expected_epochs(3) for n in order][: len(whole.seen)]
    for step in steps:
        resumed = Recorder()
        trainer(**until).fit(resumed, loader(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=False)
        assert resumed.seen == whole.seen[step:], step


def expected_epochs(count: int) -> list[list[int]]:
    own = loader()
    return [numbers(own) for _ in range(count)]


@given(packs=st.integers(1, 12), world=st.integers(1, 4), rounds_per_step=st.integers(1, 3))
def test_every_pack_is_learnt_from_once(packs: int, world: int, rounds_per_step: int) -> None:
    """What fills up the last round of several processes is computed and not learnt from."""
    epochs = [list(process) for process in shared(packs, world, rounds_per_step=rounds_per_step)]
    learnt = [batch.supervised_tokens for batches in epochs for batch in batches]
    assert sorted(n for n in learnt if n) == list(range(1, packs + 1))
    for first in range(0, len(epochs[0]), rounds_per_step):
        step = [batch for batches in epochs for batch in batches[first : first + rounds_per_step]]
        assert {batch.step_weight for batch in step} == {sum(batch.supervised_tokens for batch in step)}


def test_an_epoch_that_is_cut_short_weighs_its_last_step_by_what_it_has() -> None:
    (process,) = shared(12, 1, rounds_per_step=4, rounds=10)
    batches = [batch for batch, _ in zip(process, range(10), strict=False)]
    assert batches[9].step_weight == batches[8].supervised_tokens + batches[9].supervised_tokens
    assert batches[7].step_weight == sum(batch.supervised_tokens for batch in batches[4:8])


def test_a_place_in_other_rounds_is_refused() -> None:
    two, one = shared(8, 2)[0], shared(8, 1)[0]
    with pytest.raises(UserError, match=r"2 process\(es\) with 1 pack\(s\).*has 1 with 1"):
        one.load_state_dict(two.state_dict())
