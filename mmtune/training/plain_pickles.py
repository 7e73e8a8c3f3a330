"""Restriction of unpickling to tensors and their metadata, for every library that reads pickles."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# Names that a pickle may contain while a checkpoint is read: classes that only hold values, and torch's constants. Not
# torch's loaders of storages, because storages are pickles again.
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
# additional names of DeepSpeed, all of them records of numbers, of which torch reads only the values
_DEEPSPEED = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)

_watched = 0  # number of active blocks of `plain_pickles`
_installed = False


class CodeInPickleError(Exception):
    """Error for a pickle that names code; the code was not run."""


@contextmanager
def plain_pickles() -> Iterator[None]:
    """Refuse every pickle that names code during the block, and restrict torch.load to tensors.

    Python raises an audit event for each name that a pickle looks up, before the name is imported and in every library.
    So no library has to cooperate: torch.distributed.checkpoint, Lightning's lazy reader and DeepSpeed open pickles
    without restriction.

    Raises:
        CodeInPickleError: a pickle names code; libraries may wrap this error.
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
    """Return whether the data comes from another process of the run, which reads the same checkpoint."""
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
