"""Tensors from safetensors and .bin files, in one file or in several, read without running code in a file."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from mmtune.common.archives import is_compressed
from mmtune.common.errors import UserError, reason
from mmtune.common.files import is_file, locate, read_json
from mmtune.common.hub import go_offline_if_unreachable

State = dict[str, torch.Tensor]
_INDEX = ".index.json"
_STEMS = ("model.safetensors", "pytorch_model.bin")


def find_file(reference: str, name: str) -> Path | None:
    """Return the path of a file of a folder or hub repository, downloaded if necessary; None if there is no such file.

    Raises:
        UserError: the repository cannot be reached and is not on this machine.
    """
    folder = locate(reference)
    if folder.is_dir():
        return folder / name if is_file(folder / name) else None
    if folder.is_absolute() or reference.startswith(".") or reference.count("/") > 1 or folder.exists():
        raise UserError(f"{reference}: no such folder")
    go_offline_if_unreachable()
    try:
        found = cached_file(reference, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{reference}: no such folder, and as a hub id it is not on this machine and cannot be reached; "
            f"`hf download {reference}` fetches it where there is a network ({reason(error)})"
        ) from None
    return Path(found) if found else None


def read_settings(reference: str, name: str) -> dict[str, Any] | None:
    """Read a JSON object from a file of a folder or hub repository; None if there is no such file.

    Raises:
        UserError: the file holds no JSON object.
    """
    file = find_file(reference, name)
    if file is None:
        return None
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise UserError(f"{file}: expected a JSON object, found {json.dumps(settings)[:40]}")
    return settings


class Weights:
    """Tensors of a model by name, read from the disk on demand.

    Attributes:
        reference: folder or hub id.
        files: the file of each tensor, by the tensor's name.
    """

    def __init__(self, reference: str, files: dict[str, Path]) -> None:
        self.reference, self.files = reference, files

    @classmethod
    def of(cls, reference: str) -> Weights | None:
        """Find the weights of a folder or hub repository: `model.safetensors` or `pytorch_model.bin`, or their parts.

        Returns:
            The weights; None if there are none at all.

        Raises:
            UserError: some of the files are missing or damaged.
        """
        for stem in _STEMS:
            if (single := find_file(reference, stem)) is not None:
                return cls(reference, dict.fromkeys(_names(single), single))
            if (index := find_file(reference, stem + _INDEX)) is not None:
                return cls(reference, _parts(reference, index))
        if begun := _begun_downloads(reference):
            raise UserError(
                f"{reference}: half downloaded: expected {' or '.join(_STEMS)}, found {begun}; download it again"
            )
        return None

    def read(self, names: Iterable[str]) -> State:
        """Read the named tensors; each file is opened once.

        Raises:
            UserError: a file is damaged, or lacks a tensor that the index says it has.
        """
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        state: State = {}
        for file, here in wanted.items():
            held = read_tensors(file)
            if missing := [name for name in here if name not in held]:
                raise UserError(
                    f"{file}: the index says that it holds {missing[0]}, but it does not; download it again"
                )
            state.update((name, held[name]) for name in here)
        return state


def read_tensors(file: Path) -> State:
    """Read the tensors of a safetensors or .bin file; a .bin is a pickle, of which only tensors are read.

    Raises:
        UserError: it is missing or damaged, or holds something other than tensors.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        if is_compressed(file):
            raise UserError(f"{file}: is compressed, which weights are not; get them as safetensors")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        unsafe = "Unsupported" in str(error)
        what = "a pickle with code in it, which is not run" if unsafe else "a damaged file"
        raise UserError(f"{file}: expected tensors, found {what}; get the weights as safetensors") from None
    except UserError:
        raise
    except Exception as error:  # torch raises nearly anything over a damaged pickle
        raise UserError(f"{file}: damaged ({reason(error)}); download it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{file}: expected tensors by name, found {type(state).__name__} with other things in it")
    return state


def compare(found: State, expected: dict[str, tuple[int, ...]], where: str) -> None:
    """Check that tensors have the names and shapes that a model expects.

    Raises:
        UserError: they do not; the message begins with `where`.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        parts = [f"{len(missing)} tensors are missing ({missing[0]})"] if missing else []
        parts += [f"{len(unknown)} are not expected ({unknown[0]})"] if unknown else []
        raise UserError(f"{where}: not the weights of its config: {', '.join(parts)}; download it again")
    for name, shape in expected.items():
        if tuple(found[name].shape) != tuple(shape):
            raise UserError(f"{where}: {name} is {list(found[name].shape)}, and its config expects {list(shape)}")


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(read_tensors(file))
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); download it again") from None


def _parts(reference: str, index: Path) -> dict[str, Path]:
    """Map each tensor that an index names to its file."""
    settings = read_json(index)
    places = settings.get("weight_map") if isinstance(settings, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: expected a weight_map of tensors and files, found none; download it again")
    names = sorted(set(map(str, places.values())))
    if odd := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index}: names {odd[0]}, which is not a file beside it")
    files = {name: find_file(reference, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise UserError(
            f"{reference}: half downloaded: {index.name} names {len(names)} files, and {len(missing)} of them "
            f"({', '.join(missing[:3])}) are missing; download it again"
        )
    return {tensor: file for tensor, name in places.items() if (file := files[str(name)]) is not None}


def _begun_downloads(reference: str) -> str:
    folder = locate(reference)
    begun = [*folder.glob("*.incomplete"), *folder.glob(".cache/huggingface/download/*.incomplete")]
    return ", ".join(path.name for path in begun[:2])
