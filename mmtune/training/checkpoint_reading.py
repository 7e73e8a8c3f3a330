"""Safe loading and deletion of checkpoints with any strategy: no code is run, and no other file is deleted."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.filesystem import FileSystemReader

from mmtune.common.archives import is_compressed
from mmtune.common.errors import UserError, reason
from mmtune.models.decoding.batches import is_out_of_memory
from mmtune.training.plain_pickles import plain_pickles

_INDEX, _REST = ".metadata", "meta.pt"  # in a folder that torch.distributed.checkpoint and Lightning write
_IN_PARTS = (ModelParallelStrategy, FSDPStrategy)


def guard_checkpoints(strategy: Strategy) -> None:
    """Replace the `load_checkpoint` method of a strategy by `read_checkpoint`, for all checkpoints that it loads."""
    strategy.load_checkpoint = functools.partial(read_checkpoint, strategy)  # type: ignore[method-assign]


def guard_deletion(trainer: pl.Trainer) -> None:
    """Replace the `remove_checkpoint` method of a run's strategy by `delete_checkpoint`.

    The checkpoint that a run resumes from names the checkpoint to delete next, and Lightning deletes folders, too, at
    any address.
    """
    trainer.strategy.remove_checkpoint = functools.partial(delete_checkpoint, trainer)  # type: ignore[method-assign]


def delete_checkpoint(trainer: pl.Trainer, path: Any) -> None:
    """Delete a checkpoint as the strategy does, but only in the checkpoint folders of the run's callbacks.

    Raises:
        UserError: it is in another folder, or has another file extension.
    """
    writers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    if not any(_is_of(writer, str(path)) for writer in writers):
        raise UserError(
            f"--ckpt_path: the checkpoint that the run goes on from says to delete {path}, which is none of the run's "
            "checkpoints; nothing was deleted; give another checkpoint"
        )
    type(trainer.strategy).remove_checkpoint(trainer.strategy, path)


def _is_of(writer: ModelCheckpoint, path: str) -> bool:
    folder = str(writer.dirpath)
    if not path.endswith(writer.FILE_EXTENSION) or ".." in Path(path).parts:
        return False
    if "://" in folder:
        return path.startswith(f"{folder.rstrip('/')}/")
    # an address would be one of fsspec's
    return ":" not in path.partition("/")[0] and Path(path).resolve().is_relative_to(Path(folder).resolve())


def read_checkpoint(strategy: Strategy, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """Load a checkpoint as the strategy does, without running code in it, even where `weights_only` is false.

    Raises:
        UserError: it is missing, damaged, of another kind than the strategy reads, or holds code.
    """
    if "://" not in str(path):
        _check_kind(strategy, Path(path))
    try:
        with plain_pickles():
            # the method of the class, which this function replaces
            loaded: dict[str, Any] = type(strategy).load_checkpoint(strategy, path, weights_only=True)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch.distributed.checkpoint wraps what it meets in one that is no Exception
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise UserError(
            f"{path}: cannot be resumed from: it is damaged, of another model, or holds code ({_cause(error)}); give "
            "another --ckpt_path, or delete it to train from the beginning"
        ) from error
    return loaded


def _check_kind(strategy: Strategy, path: Path) -> None:
    """Raise a UserError if the path is a file in place of a folder, or the reverse, or is missing or incomplete."""
    if not (path.is_file() or path.is_dir()):  # nor a pipe, which would be waited for
        raise UserError(f"--ckpt_path {path}: no such file")
    name = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy):
        if path.is_file() and not strategy.load_full_weights:
            raise UserError(f"--ckpt_path {path}: a file; {name} reads the folder that it wrote")
    elif path.is_dir():
        if not isinstance(strategy, _IN_PARTS):
            raise UserError(f"--ckpt_path {path}: a folder; {name} reads one file, RUN/checkpoints/last.ckpt")
        if (fault := fault_of_parts(path)) is not None:
            raise UserError(f"{path}: a damaged checkpoint: {fault}; delete it to train from the beginning")


def fault_of_parts(folder: Path) -> str | None:
    """Return the fault of a folder that holds a checkpoint in parts, without loading any; None if it is complete.

    The folder's index holds the names of the parts. They must be files of the folder itself. The file meta.pt must not
    be compressed: torch compresses no file, and a compressed one may expand to a thousand times its size.
    """
    index, rest = folder / _INDEX, folder / _REST
    for file in (index, rest):
        if not file.is_file() or file.is_symlink():
            return f"{file.name} is missing, or a link"
    try:
        with plain_pickles():
            places = list(FileSystemReader(folder).read_metadata().storage_data.values())
        ends: dict[str, int] = {}
        for place in places:
            if place.offset < 0 or place.length < 0:
                return f"{_INDEX} holds negative sizes"
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    except Exception as error:
        return f"{_INDEX} cannot be read ({_cause(error)})"
    for name, end in ends.items():
        part = folder / str(name)
        if Path(str(name)).name != name or part.is_symlink() or not part.is_file():
            return f"the part {name} is missing, outside of the folder, or a link"
        if part.stat().st_size < end:
            return f"the part {name} is cut off"
    return f"{_REST} is compressed" if is_compressed(rest) else None


def _cause(error: BaseException) -> str:
    """Return the original reason of an exception; those of torch.distributed.checkpoint contain tracebacks."""
    failures = getattr(error, "failures", None)
    return reason(next(iter(failures.values()))[0] if failures else error)
