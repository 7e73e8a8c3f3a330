"""Atomic writing and safe reading of checkpoints, and the choice of the one to resume from."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mmtune.common.archives import is_compressed
from mmtune.common.disk import naming
from mmtune.common.errors import UserError, reason
from mmtune.training.plain_pickles import plain_pickles

LAST, _PREVIOUS = "last.ckpt", "previous.ckpt"
_LISTED = 3


class WholeCheckpoints(TorchCheckpointIO):
    """Write each checkpoint beside its target and rename it, so that a killed run keeps the previous one.

    Lightning writes to the system's folder for temporary files and moves the file from there. Between file systems the
    move is a copy: a process killed during it leaves half a checkpoint in place of the last complete one.

    The checkpoint before the last is kept as previous.ckpt, because disks damage files too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; Lightning itself writes to an address such as s3://….

        Raises:
            OSError: the disk is full or cannot be written to; names the checkpoint.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # always the same name, so that the next checkpoint overwrites the file of a killed process
        part = target.with_name(f"{target.name}.part")
        try:
            part.unlink(missing_ok=True)  # if it were a link, a file elsewhere would be overwritten
            with naming(target), part.open("xb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())  # else the name may reach the disk before the content
        except BaseException:
            part.unlink(missing_ok=True)  # it may be what fills the disk
            raise
        if target.name == LAST and target.is_file():
            target.replace(target.with_name(_PREVIOUS))  # a run killed here resumes from that one
        part.replace(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint without running code in it, even where `weights_only` is false.

        Raises:
            UserError: it is missing, damaged, compressed, or no checkpoint of a training run.
        """
        if "://" not in str(path) and Path(path).is_file() and is_compressed(Path(path)):
            raise UserError(
                f"{path}: a damaged checkpoint, or a compressed one, which fit writes none of; give another"
            )
        try:
            checkpoint: Any = super().load_checkpoint(path, map_location or _stay, weights_only=True)
        except FileNotFoundError:
            raise UserError(f"--ckpt_path {path}: no such file") from None
        except Exception as error:  # torch raises nearly anything over a damaged pickle
            raise UserError(
                f"{path}: a damaged checkpoint; put a whole one in its place, or delete it to train from the "
                f"beginning ({reason(error)})"
            ) from None
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise UserError(f"{path}: not the checkpoint of a training run; give RUN/checkpoints/last.ckpt")
        return checkpoint


def _stay(storage: Any, location: str) -> Any:
    """Keep weights in the memory they are read into, on any device they were saved from; Lightning's own default."""
    return storage


def newest_whole(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the last, or the previous one if the last is damaged or missing.

    Every stored byte is read and checked, because torch would not notice a changed byte in the weights. If both are
    damaged, the last is returned, and reading it reports the error. A folder, to which a strategy writes a checkpoint
    in parts, is not checked. None if there is no checkpoint.
    """
    last, previous = folder / LAST, folder / _PREVIOUS
    if last.is_dir() or _is_whole(last):
        return last
    if _is_whole(previous):
        return previous
    return last if last.exists() else None


def steps_taken(checkpoint: Path) -> int | None:
    """Return the number of optimizer steps in a checkpoint; None if it is in parts, or has no such number."""
    try:
        with plain_pickles():
            return int(torch.load(checkpoint, weights_only=True, mmap=True, map_location=_stay)["global_step"])
    except Exception:  # reading it later reports the error
        return None


def _is_whole(file: Path) -> bool:
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises what it meets: names that are not UTF-8, compressions that it does not know
        return False


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Describe the differences between a checkpoint and a run: the first names, and the number of further ones."""
    changed = [
        f"{name} ({_shown(saved[name])} in the checkpoint, {_shown(own[name])} here)"
        for name in saved
        if name in own and saved[name] != own[name]
    ]
    parts = [("", changed)]
    parts += [("only in the checkpoint: ", [f"{name} ({_shown(saved[name])})" for name in saved if name not in own])]
    parts += [("only here: ", [f"{name} ({_shown(own[name])})" for name in own if name not in saved])]
    return "; ".join(
        start + ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        for start, names in parts
        if names
    )


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, torch.Size) else str(value)
