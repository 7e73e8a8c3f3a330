"""HTTP connections of the chat page's server, with timeouts and a limit on their number.

uvicorn alone waits without limit: a few dozen incomplete requests would block all other clients.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 10.0  # for a request's headers to arrive
BODY_SECONDS = 35.0  # for its body; the limit of `read_message`, which sends an error, is shorter
READING_SECONDS = 30.0  # for a client to read what is buffered for it
ALL = 128  # open connections
OF_ONE = 32  # open connections from one address


class LimitedConnection(H11Protocol):
    """HTTP connection that is closed after a timeout, or where there are too many connections."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take the arguments of uvicorn's `H11Protocol`."""
        super().__init__(*args, **options)
        self.since = time.monotonic()
        self._awaited = ""
        self._arriving: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """IP address of the client; empty if unknown."""
        return self.client[0] if self.client else ""

    @property
    def answering(self) -> bool:
        """Whether a request was received completely, and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the timeout for the headers, and close a connection if there are too many."""
        super().connection_made(transport)
        self._await("headers", HEADERS_SECONDS)
        make_room(one for one in self.connections if not one.transport.is_closing())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeouts."""
        super().connection_lost(exc)
        self._await("", 0)
        self._stop_reading_clock()

    def data_received(self, data: bytes) -> None:
        """Process received bytes, and set the timeout for the rest of the request."""
        super().data_received(data)
        self._await_rest()

    def on_response_complete(self) -> None:
        """Finish a response; if the request's body is incomplete, close the connection."""
        unsent = self.cycle.more_body
        super().on_response_complete()
        self._await("", 0)
        if unsent:
            self.transport.close()
        elif not self.cycle.response_complete or self.conn.trailing_data[0]:  # the next request has begun
            self._await_rest()
        if self.transport.get_write_buffer_size():
            self._start_reading_clock()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._start_reading_clock()  # unread data keeps it open

    def pause_writing(self) -> None:
        """Stop writing, and start the timeout for the client to read."""
        super().pause_writing()
        self._start_reading_clock()

    def resume_writing(self) -> None:
        """Resume writing after the client has read."""
        super().resume_writing()
        self._stop_reading_clock()

    def end(self) -> None:
        """Close the connection at once, without sending buffered data."""
        self.transport.abort()

    def _await_rest(self) -> None:
        if self.transport.is_closing() or self.answering:
            self._await("", 0)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._await("body", BODY_SECONDS)
        else:
            self._await("headers", HEADERS_SECONDS)

    def _await(self, what: str, seconds: float) -> None:
        """Start the timeout for a part of a request, unless it is running; an empty part only stops the timeout."""
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
    """Close one connection if there are too many, of the newest one's address or of all addresses.

    Candidates are the connections of the newest one's address if it has too many; otherwise, if there are too many in
    all, those of the address with the most. The oldest candidate that is not being answered is closed; if there is none
    but the newest connection, that one is closed.

    Args:
        connections: all open connections; with `address`, `since`, `answering` and `end`.
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
