"""Counter of the places where the host waits for a GPU, by operator and by line of mmtune."""

from __future__ import annotations

import collections
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operators whose CUDA kernels wait, because the size of their result depends on values
_ALWAYS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::is_nonzero", "aten::histc",
}  # fmt: skip
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::copy")
_INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index")

Wait = tuple[str, str]  # operator, with the reason, and line
_quiet = 0


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Leave out the copies of the pretended card's own kernels."""
    global _quiet
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1


class Waits:
    """Waits for a GPU.

    Attributes:
        counts: how often the host waited, by operator and line.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[Wait] = collections.Counter()

    @property
    def total(self) -> int:
        """All waits."""
        return sum(self.counts.values())

    def note(self, what: str) -> None:
        """Add a wait of the line of mmtune that runs."""
        self.counts[what, _line()] += 1

    def __sub__(self, earlier: Waits) -> Waits:
        found = Waits()
        found.counts = self.counts - earlier.counts
        return found

    def copy(self) -> Waits:
        """Return the counts so far."""
        return self - Waits()

    def __str__(self) -> str:
        return "\n".join(f"{count:5} {what:50} {line}" for (what, line), count in self.counts.most_common())


class CountedCalls(TorchDispatchMode):
    """Adds the waits of operators on the pretended card to a counter."""

    current: Waits | None = None

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits, self._depth = waits, 0

    def __enter__(self) -> Any:
        CountedCalls.current, self._depth = self.waits, self._depth + 1
        return super().__enter__()

    def __exit__(self, *exception: Any) -> Any:
        self._depth -= 1
        CountedCalls.current = self.waits if self._depth else None
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where composite operators come in one piece
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if not _quiet:
            for why in _reasons(func._schema.name, args, kwargs, out):
                self.waits.note(why)
        return out


def _reasons(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> Iterator[str]:
    """Yield each reason for which a call waits."""
    if name in _COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        if source.is_cuda != out.is_cuda:
            asked = kwargs.get("non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False)
            # from pageable memory, CUDA copies to a buffer of its own and goes on; to it, it waits
            if not asked or not (source if out.is_cuda else out).is_pinned():
                yield f"{name}: {'host to device' if out.is_cuda else 'device to host'}"
        return
    if not any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in tree_leaves((args, kwargs))):
        return
    if name in _ALWAYS or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None):
        yield f"{name}: its result depends on values"
    if name in _INDEXING:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                yield f"{name}: boolean index"
            elif index is not None and not index.is_cuda and index.dim():
                yield f"{name}: index on the host"


@contextlib.contextmanager
def warned_waits(waits: Waits) -> Iterator[None]:
    """Count the waits of a real GPU, of which torch can warn."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            waits.note("synchronization")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _line() -> str:
    """Return the innermost line of mmtune that runs, and the innermost one of a library that it called."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        file, parents = frame.f_code.co_filename, frame.f_back
        if "/mmtune/" in file and "/tests/" not in file and "-packages/" not in file:
            return f"{file.split('/mmtune/')[-1]}:{frame.f_lineno}" + (f" < {library}" if library else "")
        if "-packages/" in file and "/torch/" not in file and not library:
            library = f"{file.split('-packages/')[-1]}:{frame.f_lineno}"
        if parents is None:
            break
        frame = parents
    return f"(outside mmtune) {library}"
