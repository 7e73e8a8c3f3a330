"""What the chat page's server lets itself be asked."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

_ADDRESSES = 1024  # whose messages are counted; the one longest silent is forgotten


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be asked.

    Attributes:
        text: characters of a message.
        photo_bytes: size of a photo's file.
        photo_pixels: width times height of a photo, before it is decoded.
        photos: of a conversation.
        turns: of a conversation.
        tokens: of an answer.
        conversations: kept at once; of the address with most, the one longest silent is forgotten.
        waiting: messages that wait for a model.
        waiting_of_one: messages of one address that are answered or wait.
        per_minute: requests of one address that are more than reading the page.
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
        """Bytes of a request: a photo in base64, and the text, of which JSON may write a character in twelve."""
        return self.photo_bytes * 4 // 3 + 12 * self.text + 1000


class RateLimit:
    """Counts the requests of each address in the last minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Whether one more is within the limit; it is counted if so."""
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
