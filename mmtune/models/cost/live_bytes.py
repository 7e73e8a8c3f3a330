"""Bytes of the storages that are alive, in each phase of a pass through a model's blocks."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Phase(NamedTuple):
    """A part of a pass.

    Attributes:
        stage: `forward`, then `backward`.
        event: what it begins with: a block's `input`, `output` or `gradient`; nothing at the beginning of a stage.
        block: whose; the last is -1.
        time: how often this has been in the stage; documents may be computed one by one.
    """

    stage: str
    event: str = ""
    block: int = 0
    time: int = 0


Peaks = dict[Phase, int]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive.

    Attributes:
        peaks: the most there were in each phase.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._now = 0
        self._alive: set[int] = set()
        self._times: Counter[Phase] = Counter()
        self._phase = Phase("forward")
        self.peaks: Peaks = {self._phase: 0}
        for tensor in known:
            self._follow(tensor.untyped_storage(), 0)

    @property
    def peak(self) -> int:
        """The most there ever were."""
        return max(self.peaks.values())

    def mark(self, stage: str = "", event: str = "", block: int = 0) -> None:
        """Begin a phase, of the present stage if none is named."""
        phase = Phase(stage or self._phase.stage, event, block)
        self._phase = phase._replace(time=self._times[phase])
        self._times[phase] += 1
        self.peaks[self._phase] = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count what is new in the result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._follow(storage, storage.nbytes())
        self.peaks[self._phase] = max(self.peaks[self._phase], self._now)

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def mark_blocks(blocks: nn.ModuleList, live: LiveBytes) -> None:
    """Have each block begin a phase when it is called, when it returns, and when its output's gradient is there."""

    def follow(block: nn.Module, place: int) -> None:
        def returned(_: Any, __: Any, output: Any) -> None:
            live.mark(event="output", block=place)
            for tensor in tree_leaves(output):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: live.mark(event="gradient", block=place))

        block.register_forward_pre_hook(lambda _, __: live.mark(event="input", block=place))
        block.register_forward_hook(returned)

    for place, block in enumerate(blocks):
        follow(block, place if place + 1 < len(blocks) else -1)


def with_more_blocks(fewer: Peaks, more: Peaks, others: int) -> Peaks:
    """Peaks with so many more blocks than `more` has, which has one more than `fewer`, all but the first alike.

    In one phase, what all other blocks hold does not change, so its peak is linear in their number. What a block in the
    middle has lies between those of its neighbours.
    """
    return {phase: more[phase] + others * (more[phase] - peak) for phase, peak in fewer.items()}
