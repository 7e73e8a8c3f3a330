"""Limits on the requests to the chat page's server."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

_ADDRESSES = 1024  # that are counted; the one without requests for the longest time is removed


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on conversations, messages and requests.

    Attributes:
        text: maximum number of characters of a message.
        photo_bytes: maximum size of an image file, in bytes.
        photo_pixels: maximum width times height of an image, checked before it is decoded.
        photos: maximum number of images of a conversation with one model.
        turns: maximum number of messages of a conversation with one model.
        tokens: maximum number of tokens of an answer.
        conversations: maximum number of stored conversations; beyond it, the least recently used one of the address
            with the most is removed.
        waiting: maximum number of messages in the queue of one model, without the one that is answered.
        waiting_of_one: maximum number of messages of one address that are answered or wait.
        per_minute: maximum number of requests of one address in a minute, without GET and HEAD.
    """

    text: int = 8000
    photo_bytes: int = 10_000_000
    photo_pixels: int = 50_000_000
    photos: int = 8
    turns: int = 50
    tokens: int = 2048
    conversations: int = 16
    waiting: int = 8
    waiting_of_one: int = 4
    per_minute: int = 60

    @property
    def body(self) -> int:
        """Maximum bytes of a request: an image in base64, and the text at up to 12 bytes a character in JSON."""
        return self.photo_bytes * 4 // 3 + 12 * self.text + 1000


class RateLimit:
    """Rate limit of the requests of each address in the last minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Return whether another request of the address is within the limit; if so, count it."""
        now = self._clock()
        times = self._times.setdefault(address, deque())
        self._times.move_to_end(address)
        if len(self._times) > _ADDRESSES:
            self._times.popitem(last=False)
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self._per_minute:
            return False
        times.append(now)
        return True
