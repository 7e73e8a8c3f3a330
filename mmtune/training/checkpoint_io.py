"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mmtune.errors import UserError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a run killed in between keeps the one before.

    Lightning writes to the system's folder for temporary files and moves from there, which between file systems is a
    copy: a kill in the middle of it leaves half a checkpoint in the place of the last whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; one at an address such as s3://… is written by Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # always the same name, so that what a kill leaves behind is written over by the next
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())  # else the name may reach the disk before the content
        part.replace(target)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            UserError: it is missing, damaged, or no checkpoint of a training run.
        """
        try:
            checkpoint: Any = super().load_checkpoint(path, *args, **kwargs)
        except FileNotFoundError:
            raise UserError(f"--ckpt_path {path}: no such file") from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n")[0][:160]
            raise UserError(
                f"{path}: a damaged checkpoint; put a whole one in its place, or delete it to train from the "
                f"beginning ({reason})"
            ) from None
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise UserError(f"{path}: not the checkpoint of a training run; give RUN/checkpoints/last.ckpt")
        return checkpoint
