"""Cache of results about a language model, with keys made from its config and the code that computed them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mmtune.common.files import atomic_path, cache_dir

T = TypeVar("T")
_NO_MATTER = ("_name_or_path", "architectures", "dtype", "quantization_config", "torch_dtype", "transformers_version")


def settings_of(config: Any) -> list[Any]:
    """Return the settings of a transformers config that affect how its model computes."""
    return [type(config).__name__, {k: value for k, value in config.to_dict().items() if k not in _NO_MATTER}]


def outcome_key(settings: Any, code: Sequence[str], libraries: Sequence[str] = ("torch", "transformers")) -> str:
    """Return a cache key that changes with settings, code and library versions.

    Args:
        settings: a JSON value, which may contain objects whose `repr` shows their content.
        code: glob patterns of files in `mmtune/models/`.
        libraries: names of the libraries.
    """
    text = json.dumps([settings, *_code(tuple(code), tuple(libraries))], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_outcome(folder: str, key: str, kind: type[T]) -> T | None:
    """Read a cached result, a dataclass with fields of JSON types; None if it is missing or cannot be read."""
    try:
        return kind(**json.loads((cache_dir() / folder / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def keep_outcome(folder: str, key: str, outcome: Any) -> None:
    """Write a result to the cache; if the cache is not writable, the result is computed again the next time."""
    try:
        with atomic_path(cache_dir() / folder / f"{key}.json") as temporary:
            temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    except OSError:
        return


@functools.cache
def _code(patterns: tuple[str, ...], libraries: tuple[str, ...]) -> list[str]:
    digest = hashlib.sha256()
    models = Path(__file__).parent
    for file in sorted({file for pattern in patterns for file in models.glob(pattern)}):
        digest.update(file.read_bytes())
    return [digest.hexdigest(), *(importlib.metadata.version(library) for library in libraries)]
