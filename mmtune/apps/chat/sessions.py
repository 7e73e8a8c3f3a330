"""The conversations that the chat page's server keeps, and the queue before each model."""

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
    """A conversation with every model.

    Attributes:
        chats: one per model.
        address: whose it is.
        busy: the models that are answering it, or that it waits for.
    """

    chats: list[Chat]
    address: str
    busy: set[int] = field(default_factory=set)


class Sessions:
    """The conversations in memory, by keys that cannot be guessed."""

    def __init__(self, models: Sequence[VisionLanguageModel], system: str | None, most: int) -> None:
        self._models, self._system, self._most = models, system, most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._make("")  # so that a wrong system prompt is known before the first conversation

    def begin(self, address: str) -> str:
        """Begin a conversation of somebody at this address. Returns its key."""
        key = secrets.token_urlsafe(16)
        self._sessions[key] = self._make(address)
        if len(self._sessions) > self._most:
            most = Counter(one.address for one in self._sessions.values()).most_common(1)[0][0]
            del self._sessions[next(known for known, one in self._sessions.items() if one.address == most)]
        return key

    def find(self, key: str) -> Session | None:
        """The conversation, if it is still kept."""
        if key in self._sessions:
            self._sessions.move_to_end(key)
        return self._sessions.get(key)

    def _make(self, address: str) -> Session:
        return Session([Chat(model, system=self._system) for model in self._models], address)


class Turnstile:
    """Lets one pass at a time, first come first served."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: how many may wait.
        """
        self._most = most
        self._line: deque[asyncio.Event] = deque()  # the first is inside

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return len(self._line) > self._most

    async def enter(self) -> AsyncGenerator[int, None]:
        """Wait for one's turn.

        Yields:
            How many are before, whenever that changes; at last 0: what is then done is done alone, until the iterator
            is closed or asked for more.
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
