"""Several processes that share an evaluation: `torchrun --nproc-per-node 2 -m mmtune.cli.main eval …`.

They exchange answers through the database, and otherwise only take tickets: who asks which chunk, and whether one of
them has failed. torchrun's key-value store does for that; there are no tensors to send, so there is no process group
whose collectives (gloo, nccl) could wait for a process that has ended.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmtune.common.errors import UserError

_POLL_SECONDS = 0.05
_groups = itertools.count()  # every process counts alike, so that what belongs together has the same name in all


class PeerError(UserError):
    """Another process has failed and says why; this one ends without a word."""


class Workers:
    """The processes that share an evaluation; usually this one alone.

    Attributes:
        rank: this process, from 0.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        """A group, in which every process must take the same steps.

        Args:
            rank: this process.
            count: how many there are.
            store: a `torch.distributed.Store` that all of them reach; None for a process alone.
        """
        self.rank, self.count, self._store = rank, count, store
        self._name = f"mmtune/{next(_groups)}"

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes the results."""
        return self.rank == 0

    def tickets(self, what: str, total: int) -> Iterator[int]:
        """The numbers below `total`, each for one process only; whoever is free gets the next.

        Raises:
            PeerError: another process has failed.
        """
        if self._store is None:
            yield from range(total)
            return
        while (number := self._add(f"ticket/{what}", 1) - 1) < total:
            self._check_peers()
            yield number

    def barrier(self, what: str) -> None:
        """Wait until every process has come here.

        Raises:
            PeerError: another process has failed.
        """
        if self._store is not None:
            self._add(f"barrier/{what}", 1)
            self.wait_until(lambda: self._add(f"barrier/{what}", 0) >= self.count)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for what other processes do.

        Raises:
            PeerError: another process has failed.
        """
        while self._store is not None and not done():
            self._check_peers()
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Let an error in this block end all processes; the first that has one raises it.

        Raises:
            PeerError: another process failed first.
        """
        try:
            yield
        except PeerError:
            raise
        except BaseException as error:
            if self._store is not None and self._add("failed", 1) > 1:
                raise PeerError(f"another process of this evaluation failed before: {error}") from None
            raise

    def _check_peers(self) -> None:
        if self._add("failed", 0):
            raise PeerError("another process of this evaluation has failed")

    def _add(self, counter: str, amount: int) -> int:
        """Add to a counter that all processes see, and return its new value."""
        try:
            return int(self._store.add(f"{self._name}/{counter}", amount))
        except RuntimeError as error:  # the store went with the process that held it
            raise PeerError(f"the other processes of this evaluation have ended ({error})") from None


def join() -> Workers:
    """The processes that torchrun has started with this one.

    Raises:
        UserError: they cannot find each other, or are on several machines.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers()
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) != count:
        raise UserError("the processes that share an evaluation must be on one machine; give torchrun --nnodes 1")
    return Workers(int(os.environ["RANK"]), count, _store())


@functools.cache
def _store() -> Any:
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"WORLD_SIZE is set, but the processes cannot find each other ({reason}); use torchrun"
        ) from None
    return store
