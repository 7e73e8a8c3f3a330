"""Pickles that name no code but what tensors and their metadata consist of, whichever library opens them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# What a pickle may name while a checkpoint is read: records that keep values and do nothing, and torch's constants. Not
# torch's loaders of storages, which are pickles again.
_ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),  # the constant of that name, out of a table
    ("torch", "Size"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath")),
    ("pathlib._local", "PosixPath"),
}  # fmt: skip
# and what DeepSpeed adds, all of them records of numbers, of which torch reads the values alone
_DEEPSPEED = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)

_watched = 0  # blocks of `plain_pickles` that are under way
_installed = False


class CodeInPickleError(Exception):
    """A pickle names code, which was not run."""


@contextmanager
def plain_pickles() -> Iterator[None]:
    """While the block runs, refuse every pickle that names code, and have torch.load read tensors alone.

    Python tells of each name that a pickle looks up before it is imported, whoever unpickles, so that no library in
    between need be asked: torch.distributed.checkpoint, Lightning's lazy reader and DeepSpeed open pickles with
    everything allowed.

    Raises:
        CodeInPickleError: one does; libraries may wrap it.
    """
    global _watched
    _install()
    with ExitStack() as stack:
        stack.enter_context(_environment({_FORCE: "1", _FORCE_NOT: None}))
        if "deepspeed" in sys.modules:
            stack.enter_context(torch.serialization.safe_globals(_deepspeed_records()))
        _watched += 1
        try:
            yield
        finally:
            _watched -= 1


def _install() -> None:
    global _installed
    if not _installed:  # a hook stays as long as the process
        sys.addaudithook(_look)
        _installed = True


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event == "pickle.find_class" and tuple(arguments) not in _ALLOWED and not _is_message():
        raise CodeInPickleError(f"it names {'.'.join(map(str, arguments))}, code that is not run")


def _is_message() -> bool:
    """Whether what is unpickled comes from another process of the run, which reads the same checkpoint."""
    reader = sys._getframe(2)  # below the hook
    place = reader.f_globals.get("__name__"), reader.f_code.co_name
    return place == ("torch.distributed.distributed_c10d", "_tensor_to_object")


def _deepspeed_records() -> list[Any]:
    return [
        getattr(module, name)
        for path, name in _DEEPSPEED
        if (module := importlib.import_module(path)) and hasattr(module, name)
    ]


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _put(changes)
    try:
        yield
    finally:
        _put(before)


def _put(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
