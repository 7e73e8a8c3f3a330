"""Steps of decoding, one token for every sequence; on a GPU, replayed from a CUDA graph.

A step of a small batch launches some hundred kernels, which takes the host longer than the GPU needs to compute them. A
graph launches them all at once. It is captured for fixed places in memory: for so many sequences, of which some may be
over, and for as many tokens as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mmtune.common.devices import on_device
from mmtune.models.attention.decoding import Decoding, Step
from mmtune.models.decoding.batches import is_out_of_memory
from mmtune.models.decoding.passes import Passes

Replay = Callable[[], torch.Tensor]
_EAGER = 8  # steps before a graph is captured, which takes as long as some steps


class Steps:
    """Computes one token after the other of the sequences of a `Decoding`."""

    def __init__(
        self, passes: Passes, decoding: Decoding, *, capture: Callable[[Replay], Replay] | None = None
    ) -> None:
        """
        Args:
            passes: the model.
            decoding: the sequences.
            capture: makes a function that replays what another one computes; by default a CUDA graph on a GPU where
                `passes.graphs` allows it, and nothing elsewhere.
        """
        self._passes, self._decoding = passes, decoding
        on_gpu = decoding.device.type == "cuda"
        self._capture = capture or (cuda_graph if on_gpu and passes.graphs.allowed else None)
        self._taken = 0
        self._shape = (0, 0, 0)  # sequences, sequences there is room for, tokens there is room for, of the graph
        self._inputs = self._rows = torch.empty(0)
        self._room = 0
        self._replay: Replay | None = None

    def grow(self, newest: Sequence[int]) -> torch.Tensor:
        """Compute one token more of every sequence.

        Args:
            newest: token id of each sequence.

        Returns:
            Logits [sequences, vocabulary] of what follows it; they are valid until the next call.
        """
        step = self._decoding.grow()
        self._taken += 1
        if self._capture is not None and self._taken > _EAGER and self._decoding.fixed is not None:
            try:
                return self._replayed(newest)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._passes.graphs.allowed, self._capture = False, None  # a part of the model cannot be captured
                self._decoding.use_step(step)
        return self._passes.step(np.array(newest), self._decoding.lengths - 1, self._decoding)

    def _replayed(self, newest: Sequence[int]) -> torch.Tensor:
        assert self._decoding.fixed is not None
        count, (sequences, room) = len(newest), self._decoding.fixed
        rows, *captured = self._shape
        if captured != [sequences, room] or not rows // 2 < count <= rows:
            self._begin(min(sequences, 1 << (count - 1).bit_length()), room)
            self._shape = (self._inputs.shape[1], sequences, room)
        given = torch.zeros(2, self._inputs.shape[1], dtype=torch.long)
        given[0, :count] = torch.as_tensor(newest)
        given[1, :count] = self._decoding.lengths - 1
        self._inputs.copy_(on_device(given, self._inputs.device))
        if self._replay is None:
            assert self._capture is not None
            self._replay = self._capture(self._computed)
        return self._replay()[:count]

    def _begin(self, rows: int, room: int) -> None:
        """Set up the places from which a graph of so many sequences and tokens reads its inputs."""
        device = self._decoding.device
        self._inputs, self._replay = torch.zeros(2, rows, dtype=torch.long, device=device), None
        self._rows, self._room = torch.arange(rows, device=device), room

    def _computed(self) -> torch.Tensor:
        """Compute the logits of a step from the inputs; once more, it gives the same and changes nothing."""
        ids, places = self._inputs
        self._decoding.use_step(Step(self._rows, places, self._room))
        return self._passes.step(ids, places, self._decoding)


def cuda_graph(compute: Replay) -> Replay:
    """Capture what a function computes on a GPU; the function runs once before, as capturing asks for."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        compute()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
