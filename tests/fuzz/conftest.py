"""What the fuzzing tests share: the count of their cases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import Cases

sys.path.append(str(Path(__file__).parents[1] / "parity"))  # its models are damaged here
_ALL = Cases()


@pytest.fixture
def cases() -> Iterator[Cases]:
    """Cases of one test; their faults fail it at its end, and what it counted goes into the session's sum."""
    mine = Cases()
    yield mine
    _ALL.count += mine.count
    _ALL.refused += mine.refused
    mine.verdict()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many cases there were."""
    if _ALL.count:
        terminalreporter.write_line(f"fuzzing: {_ALL.count:,} cases, {_ALL.refused:,} of them refused")
