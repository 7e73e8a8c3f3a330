"""Temporary changes of an object's attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def set_attributes(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of an object during the block, and restore their previous values afterwards."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
