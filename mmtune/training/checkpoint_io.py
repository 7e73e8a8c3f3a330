"""Checkpoints that are whole or not there."""

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
    """Writes a checkpoint beside its place and renames it, so that a run killed in between keeps the one before.

    Lightning writes to the system's folder for temporary files and moves from there, which between file systems is a
    copy: a kill in the middle of it leaves half a checkpoint in the place of the last whole one.

    The last checkpoint but one is kept as previous.ckpt, for disks damage files too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; one at an address such as s3://… is written by Lightning.

        Raises:
            OSError: the disk is full or cannot be written to; names the checkpoint.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # always the same name, so that what a kill leaves behind is written over by the next
        part = target.with_name(f"{target.name}.part")
        try:
            part.unlink(missing_ok=True)  # where it were a link, a file elsewhere would be written over
            with naming(target), part.open("xb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())  # else the name may reach the disk before the content
        except BaseException:
            part.unlink(missing_ok=True)  # it may be what fills the disk
            raise
        if target.name == LAST and target.is_file():
            target.replace(target.with_name(_PREVIOUS))  # killed here, a run goes on from that one
        part.replace(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, of which no code is run, whatever is asked for.

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
    """Leave weights in the memory they are read into, wherever they were saved from; Lightning's own default."""
    return storage


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to resume a run from: the last, or the one before if that is damaged or missing.

    Every byte that is stored is read and checked, for torch would not notice a changed one in the weights. Where
    neither is whole, it is the last, whose reading says what is wrong. A folder, where a strategy writes a checkpoint
    in parts, is not looked into.
    """
    last, previous = folder / LAST, folder / _PREVIOUS
    if last.is_dir() or _is_whole(last):
        return last
    if _is_whole(previous):
        return previous
    return last if last.exists() else None


def steps_taken(checkpoint: Path) -> int | None:
    """After how many optimizer steps a checkpoint was saved; None where it is in parts, or does not say."""
    try:
        with plain_pickles():
            return int(torch.load(checkpoint, weights_only=True, mmap=True, map_location=_stay)["global_step"])
    except Exception:  # its reading says later what is wrong with it
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
    """What differs between a checkpoint and a run, in words: the first few names, and how many more there are."""
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
