"""Conversations in the memory of the chat page's server, and the queue of each model."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel


@dataclass(slots=True)
class Session:
    """Conversation of one client with every model.

    Attributes:
        chats: one chat per model.
        address: IP address of the client.
        busy: indices of the models that are answering a message of it, or in whose queue it waits.
    """

    chats: list[Chat]
    address: str
    busy: set[int] = field(default_factory=set)


class Sessions:
    """Conversations in memory, by random keys that cannot be guessed."""

    def __init__(self, models: Sequence[VisionLanguageModel], system: str | None, most: int) -> None:
        self._models, self._system, self._most = models, system, most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._make("")  # raises an error now if the system prompt is invalid

    def begin(self, address: str) -> str:
        """Create a conversation for a client at this address, and return its key.

        If there are too many, the least recently used one of the address with the most conversations is removed.
        """
        key = secrets.token_urlsafe(16)
        self._sessions[key] = self._make(address)
        if len(self._sessions) > self._most:
            most = Counter(one.address for one in self._sessions.values()).most_common(1)[0][0]
            del self._sessions[next(known for known, one in self._sessions.items() if one.address == most)]
        return key

    def find(self, key: str) -> Session | None:
        """Return the conversation of a key and mark it as used; None if it does not exist or was removed."""
        if key in self._sessions:
            self._sessions.move_to_end(key)
        return self._sessions.get(key)

    def _make(self, address: str) -> Session:
        return Session([Chat(model, system=self._system) for model in self._models], address)


class Turnstile:
    """Queue of one model: first in, first out, one message at a time."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: maximum number of entries that wait.
        """
        self._most = most
        self._line: deque[asyncio.Event] = deque()  # the first entry is not waiting

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return len(self._line) > self._most

    async def enter(self) -> AsyncGenerator[int, None]:
        """Join the queue and wait for the first place.

        Yields:
            Number of entries ahead, at once and again after another entry leaves the queue. The last value is 0; the
            first place is held until the iterator is closed or advanced.
        """
        moved = asyncio.Event()
        self._line.append(moved)
        try:
            while ahead := self._line.index(moved):
                yield ahead
                await moved.wait()
                moved.clear()
            yield 0
        finally:
            self._line.remove(moved)
            for other in self._line:
                other.set()
