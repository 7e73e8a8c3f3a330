"""SIGTERM and Ctrl-C, for commands that take long or run others: what ends them, and what they say then."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Terminated(SystemExit):
    """SIGTERM came; nothing is to take it for a fault of what was done meanwhile."""


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated` where Ctrl-C would raise KeyboardInterrupt; afterwards both are as before."""
    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        yield
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_chain(run: Callable[[], int]) -> int:
    """Run a command that runs others, and stop with the one that is stopped.

    Args:
        run: gives the exit status; it goes on where it was stopped when it is run again.

    Returns:
        Its exit status, or 143 and 130 where SIGTERM or Ctrl-C ended it.
    """
    with terminating():
        try:
            return run()
        except (Terminated, KeyboardInterrupt) as stop:
            return stopped(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def stopped(number: int, where: str = "", begin: str = "here") -> int:
    """Say that a signal ended the command, and how to go on.

    Args:
        number: of the signal.
        where: what was done, behind the signal's name.
        begin: where the same command goes on.

    Returns:
        The exit status that shells give for the signal.
    """
    name = NAMES[signal.Signals(number)]
    print(f"mmtune: stopped by {name}{where}; the same command goes on from {begin}", file=sys.stderr)
    return 128 + number


def _raise(number: int, frame: Any) -> NoReturn:
    raise Terminated(128 + number)
