"""Connections to the chat page's server: each has to say soon what it wants, and to read what it asked for.

uvicorn alone waits for ever: a few dozen requests that are never sent to their end would keep everyone else out.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 10.0  # for a request's headers to arrive
BODY_SECONDS = 35.0  # for its body; the page's own limit, which says why, is shorter
READING_SECONDS = 30.0  # for a client to read when much waits for it
ALL = 128  # connections at once
OF_ONE = 32  # of them from one address


class LimitedConnection(H11Protocol):
    """A connection that is closed where its client keeps it waiting, or where newer ones need its place."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """See uvicorn."""
        super().__init__(*args, **options)
        self.since = time.monotonic()
        self._awaited = ""
        self._arriving: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Whose it is."""
        return self.client[0] if self.client else ""

    @property
    def answering(self) -> bool:
        """Whether a request has come to its end, and its answer has not."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for headers; where there are too many connections, one that only waits is closed."""
        super().connection_made(transport)
        self._await("headers", HEADERS_SECONDS)
        make_room(one for one in self.connections if not one.transport.is_closing())

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._await("", 0)
        self._stop_reading_clock()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._await_rest()

    def on_response_complete(self) -> None:
        """End a request; one whose body never came has no other after it."""
        unsent = self.cycle.more_body
        super().on_response_complete()
        self._await("", 0)
        if unsent:
            self.transport.close()
        elif not self.cycle.response_complete or self.conn.trailing_data[0]:  # the next one was there already, or begun
            self._await_rest()
        if self.transport.get_write_buffer_size():
            self._start_reading_clock()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that asks nothing more."""
        super().timeout_keep_alive_handler()
        self._start_reading_clock()  # what is left to be read keeps it open

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._start_reading_clock()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._stop_reading_clock()

    def end(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _await_rest(self) -> None:
        if self.transport.is_closing() or self.answering:
            self._await("", 0)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._await("body", BODY_SECONDS)
        else:
            self._await("headers", HEADERS_SECONDS)

    def _await(self, what: str, seconds: float) -> None:
        """Give the client so long for a part of a request, from its first byte on."""
        if what == self._awaited:
            return
        if self._arriving is not None:
            self._arriving.cancel()
        self._awaited = what
        self._arriving = self.loop.call_later(seconds, self.end) if what else None

    def _start_reading_clock(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(READING_SECONDS, self._end_unread)

    def _stop_reading_clock(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _end_unread(self) -> None:
        self._reading = None
        if self.flow.write_paused or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.end()


def make_room(connections: Iterable[Any]) -> None:
    """Close what has no place, the newest connection among them.

    Of an address with too many, or of the address with most where there are too many in all, the one that has kept the
    server waiting longest goes; one that is being answered stays. Where all are, the newest goes.

    Args:
        connections: all there are; with `address`, `since`, `answering` and `end`.
    """
    held = sorted(connections, key=lambda one: one.since)
    counts = Counter(one.address for one in held)
    busiest = counts.most_common(1)[0][0]
    if counts[held[-1].address] > OF_ONE:
        among = [one for one in held if one.address == held[-1].address]
    elif len(held) > ALL:
        among = [one for one in held if one.address == busiest]
    else:
        return
    next((one for one in among if not one.answering and one is not held[-1]), held[-1]).end()
