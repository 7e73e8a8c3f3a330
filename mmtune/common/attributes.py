"""Attributes of an object, changed for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def set_attributes(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Have attributes of an object be these values within, and what they were before afterwards."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
