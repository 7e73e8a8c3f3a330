"""The exceptions for mistakes a user can mend, and what their messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mmtune.common.masking import masked_text

_LISTED = 30
_LONGEST = 1500  # characters of a message


class UserError(Exception):
    """Bad input: names the file, row, key or flag, and says what to do.

    The command line prints the message as one line and exits with 2; everything else that is raised is a bug
    of ours and exits with 1.
    """

    def __init__(self, message: str) -> None:
        """An error with this message, secrets masked, its middle left out where what it quotes makes it very long."""
        super().__init__(brief(masked_text(message), _LONGEST))


class RowError(UserError):
    """A row that cannot be trained on; `--data.on_bad_row skip` leaves it out and counts it."""


def brief(text: str, most: int = 80) -> str:
    """A text to be quoted in a message, its middle left out where it is longer: what is quoted may be a megabyte."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 3 :]}"


def check_seed(seed: int, where: str) -> None:
    """Look whether numpy and torch both take a seed.

    Raises:
        UserError: one does not; the message begins with `where`.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{where}: must be a whole number from 0 to {2**32 - 1:,}")


def reason(error: BaseException) -> str:
    """What an exception of a library says, as one short line; its kind where it says nothing."""
    return brief(" ".join(str(error).split()), 200) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known one, or all of them; of very many, the first few."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    more = [f"… ({len(choices)} in all)"] if len(choices) > _LISTED else []
    return f"choose one of: {', '.join([*choices[:_LISTED], *more]) or '(none)'}"
