"""Peak bytes of live tensor storages, in each phase of a pass through a model's blocks."""

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
    """Part of a pass, between two events.

    Attributes:
        stage: `forward`, then `backward`.
        event: event that begins the phase: a block's `input`, `output` or `gradient`; empty at the start of a stage.
        block: index of the block; -1 for the last.
        time: number of earlier phases with the same stage, event and block, as documents may be computed one by one.
    """

    stage: str
    event: str = ""
    block: int = 0
    time: int = 0


Peaks = dict[Phase, int]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages.

    The storages of the tensors it is created with count as 0 bytes.

    Attributes:
        peaks: maximum number of bytes in each phase.
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
        """Maximum number of bytes over all phases."""
        return max(self.peaks.values())

    def mark(self, stage: str = "", event: str = "", block: int = 0) -> None:
        """Begin a phase, in the current stage if none is named."""
        phase = Phase(stage or self._phase.stage, event, block)
        self._phase = phase._replace(time=self._times[phase])
        self._times[phase] += 1
        self.peaks[self._phase] = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the new storages in its result."""
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
    """Add hooks that begin a phase when a block is called, when it returns, and when its output gets its gradient."""

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
    """Extrapolate peaks to `others` more blocks than `more` has, which has one more than `fewer`.

    All blocks but the first are alike. In one phase, the bytes that the other blocks hold do not change, so the peak is
    linear in their number. Phases of further middle blocks are left out: their peaks lie between those of their
    neighbors.
    """
    return {phase: more[phase] + others * (more[phase] - peak) for phase, peak in fewer.items()}
