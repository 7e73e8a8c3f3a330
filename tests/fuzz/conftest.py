"""What the fuzzing tests share: their cases, and where the counts of them go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_cases import Cases

sys.path.append(str(Path(__file__).parents[1] / "parity"))  # its models are damaged here


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[Cases]:
    """Cases of one test; their faults fail it at its end, and its report says how many there were."""
    mine = Cases()
    yield mine
    request.node.user_properties.append(("cases", (mine.count, mine.refused)))
    mine.verdict()
