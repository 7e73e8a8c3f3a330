"""Exceptions for errors that a user can correct, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mmtune.common.masking import masked_text

_LISTED = 30
_LONGEST = 1500  # characters of a message


class UserError(Exception):
    """Error for bad input: the message names the file, row, key or flag, and the remedy.

    The command line prints the message as one line and exits with 2; everything else that is raised is a bug
    of ours and exits with 1.
    """

    def __init__(self, message: str) -> None:
        """Create the error: mask secrets in the message, and omit its middle where quoted text makes it very long."""
        super().__init__(brief(masked_text(message), _LONGEST))


class RowError(UserError):
    """Error for a row that cannot be used for training; `--data.on_bad_row skip` skips and counts such rows."""


def brief(text: str, most: int = 80) -> str:
    """Shorten a text that a message quotes: omit its middle if it is longer than `most`; it may be a megabyte."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 3 :]}"


def check_seed(seed: int, where: str) -> None:
    """Check that numpy and torch both accept a seed.

    Raises:
        UserError: one does not; the message begins with `where`.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{where}: must be a whole number from 0 to {2**32 - 1:,}")


def reason(error: BaseException) -> str:
    """Return the message of a library's exception as one short line, or its class name if the message is empty."""
    return brief(" ".join(str(error).split()), 200) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped name: the nearest known name, or a list of all names, cut after the first 30."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    more = [f"… ({len(choices)} in all)"] if len(choices) > _LISTED else []
    return f"choose one of: {', '.join([*choices[:_LISTED], *more]) or '(none)'}"
