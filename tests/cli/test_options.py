"""Flags from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError


@dataclass
class Options:
    """Do a thing.

    Attributes:
        out: where to.
        batch_tokens: how many at once.
        resume: go on.
    """

    out: str
    batch_tokens: int = 4
    resume: bool = True


def parsed(*arguments: str) -> Options:
    return parse(build_parser("thing", Options), Options, list(arguments))


def test_flags_are_read() -> None:
    assert parsed("--out", "x", "--batch-tokens=7", "--no-resume") == Options("x", 7, False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "required: out"),
        (("--out", "x", "--batch", "7"), "--batch"),  # a short form would mean another flag once there are two
        (("--out", "x", "--batch-tokens", "many"), "batch-tokens|batch_tokens"),
        (("--out", "x", "more"), "more"),
    ],
)
def test_mistakes_name_the_flag(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        parsed(*arguments)
    assert "mmtune thing --help" in str(error.value)
