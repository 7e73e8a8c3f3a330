"""Handling of SIGTERM and Ctrl-C in commands that take long or run others: exceptions, messages, exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Terminated(SystemExit):
    """Exit after SIGTERM; code that handles errors must not treat it as an error of the work in progress."""


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM during the block, where Ctrl-C would raise KeyboardInterrupt.

    Afterwards the previous handlers of both signals are restored.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one receives signals
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
    """Run a command that runs others, and stop when one of them is stopped by a signal.

    Args:
        run: returns the exit status; when it is run again, it continues where it was stopped.

    Returns:
        Its exit status, or 143 where SIGTERM ended it, and 130 where Ctrl-C did.
    """
    with terminating():
        try:
            return run()
        except (Terminated, KeyboardInterrupt) as stop:
            return stopped(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def stopped(number: int, where: str = "", begin: str = "here") -> int:
    """Print to stderr that a signal ended the command, and how to continue.

    Args:
        number: number of the signal.
        where: text after the signal's name, on the work that was done.
        begin: point from which the same command continues.

    Returns:
        The exit status that shells give for the signal.
    """
    name = NAMES[signal.Signals(number)]
    print(f"mmtune: stopped by {name}{where}; the same command goes on from {begin}", file=sys.stderr)
    return 128 + number


def _raise(number: int, frame: Any) -> NoReturn:
    raise Terminated(128 + number)
