"""The page of `mmtune chat --web`: models answer a browser, and nobody whom the user did not let in.

Answers are streamed as lines of JSON: `{"waiting": n}` while others are answered, `{"text": piece}`, at the end
`{"done": {…}}`, or `{"error": why}`. What is kept of a conversation is in memory alone.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import ipaddress
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mmtune.apps.chat.connections import LimitedConnection
from mmtune.apps.chat.limits import Limits, RateLimit
from mmtune.apps.chat.sessions import Session, Sessions, Turnstile
from mmtune.apps.chat.uploads import BadRequestError, Message, read_message
from mmtune.common.errors import UserError
from mmtune.common.text import visible
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import SamplingParams
from mmtune.models.decoding.batches import is_out_of_memory

# nothing is loaded from elsewhere, run in the page's text, sent elsewhere, or shown in another page's frame
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets in what the page itself sends, and writes the page's headers on every answer.

    A foreign page that has its own name point here (DNS rebinding) is told by the Host header, one that posts from its
    own place by the Origin header.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], rate: RateLimit) -> None:
        """
        Args:
            app: what is guarded.
            names: the names by which the server may be called, besides addresses.
            rate: what one address may ask.
        """
        self._app, self._names, self._rate = app, names, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        refused = self._refusal(Request(scope))
        return await (refused or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not called_by_name(host, self._names):
            return _error(421, "this server is not called by that name; use the address that mmtune printed")
        if request.method in ("GET", "HEAD"):
            return None
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{host}":
            return _error(403, "another page may not ask this server")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _error(415, "send application/json")
        if not self._rate.admit(_address(request)):
            return _error(429, "too many messages in a minute; wait a little", {"Retry-After": "10"})
        return None


def called_by_name(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is one of these names, or an address, which no foreign page can call its own."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name in names


class ChatApp:
    """What the routes do."""

    def __init__(
        self, models: Sequence[VisionLanguageModel], *, system: str | None, sampling: SamplingParams, limits: Limits
    ) -> None:
        """
        Args:
            models: one, or two to compare.
            system: a system prompt in place of the templates' own.
            sampling: what the page begins with.
            limits: what may be asked.
        """
        self._models, self._sampling, self._limits = models, sampling, limits
        self._sessions = Sessions(models, system, limits.conversations)
        self._turnstiles = [Turnstile(limits.waiting) for _ in models]
        self._asking: Counter[str] = Counter()  # messages of each address that are not answered yet
        page = importlib.resources.files("mmtune.apps.chat") / "page"
        look = importlib.resources.files("mmtune.analysis") / "templates" / "page.css"
        self._files = {
            "/": ("text/html", (page / "chat.html").read_bytes()),
            "/chat.js": ("text/javascript", (page / "chat.js").read_bytes()),
            "/chat.css": ("text/css", look.read_bytes() + (page / "chat.css").read_bytes()),
        }

    def routes(self) -> list[Route]:
        """All there is: the page's three files by name, and what it asks."""
        return [
            *(Route(path, self.file) for path in self._files),
            Route("/about", self.about),
            Route("/conversations", self.begin, methods=["POST"]),
            Route("/conversations/{key}/{model:int}", self.say, methods=["POST"]),
        ]

    async def file(self, request: Request) -> Response:
        """One of the page's files."""
        media_type, content = self._files[request.url.path]
        return Response(content, media_type=media_type)

    async def about(self, request: Request) -> Response:
        """The models, the limits and the options to begin with."""
        models = [{"name": visible(one.name), "sees": one.tower is not None} for one in self._models]
        return JSONResponse({"models": models, "sampling": asdict(self._sampling), "limits": asdict(self._limits)})

    async def begin(self, request: Request) -> Response:
        """Begin a conversation; the oldest is forgotten if there are too many."""
        return JSONResponse({"conversation": self._sessions.begin(_address(request))})

    async def say(self, request: Request) -> Response:
        """Say something to one of the models of a conversation, and stream the answer."""
        session = self._sessions.find(request.path_params["key"])
        number = request.path_params["model"]
        if session is None:
            return _error(404, "this conversation is no longer kept; begin another")
        if number >= len(self._models):
            return _error(404, "there is no such model")
        message = await read_message(request, self._limits, self._sampling)
        chat = session.chats[number]
        if len(chat.turns) >= 2 * self._limits.turns:
            return _error(413, f"a conversation has at most {self._limits.turns} turns; begin another")
        if len(chat.images) + len(message.photos) > self._limits.photos:
            return _error(413, f"a conversation has at most {self._limits.photos} photos; begin another")
        if number in session.busy:
            return _error(409, "the answer before is not over")
        if self._turnstiles[number].full:
            return _error(503, "too many are waiting for an answer; try again in a while", {"Retry-After": "20"})
        if self._asking[address := _address(request)] >= self._limits.waiting_of_one:
            return _error(429, "too many of your messages wait for an answer; wait for one", {"Retry-After": "10"})
        answer = self._answer(session, number, message, address)
        return StreamingResponse(answer, media_type="application/x-ndjson")

    async def _answer(self, session: Session, number: int, message: Message, address: str) -> AsyncGenerator[str, None]:
        """The lines of an answer. It is computed token by token, so that who leaves ends it."""
        if number in session.busy:  # asked twice before either was begun
            yield _line(error="the answer before is not over")
            return
        chat = session.chats[number]
        session.busy.add(number)
        self._asking[address] += 1
        try:
            async with contextlib.aclosing(self._turnstiles[number].enter()) as turn:
                async for ahead in turn:
                    if ahead:
                        yield _line(waiting=ahead)
                        continue
                    begun, before = time.perf_counter(), chat.counts.generated
                    pieces, last = chat.say(message.text, message.photos, sampling=message.sampling), ""
                    try:
                        while (piece := await to_thread.run_sync(next, pieces, None)) is not None:
                            yield _line(text=visible(piece, last))
                            last = piece or last
                    finally:
                        pieces.close()
                    seconds = time.perf_counter() - begun
                    cut = {"window": chat.model.window} if chat.finish_reason == "window" else {}
                    spent = {"tokens": chat.counts.generated - before, "seconds": round(seconds, 2)}
                    yield _line(done=spent | cut | ({"forgotten": chat.forgotten // 2} if chat.forgotten else {}))
        except UserError as error:
            yield _line(error=visible(str(error)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield _line(error="out of memory; begin another conversation, or use a smaller model")
        finally:
            session.busy.discard(number)
            self._asking[address] -= 1
            self._asking += Counter()  # forgets those who wait for nothing


def build_app(
    models: Sequence[VisionLanguageModel],
    *,
    system: str | None = None,
    sampling: SamplingParams | None = None,
    names: Sequence[str] = (),
    limits: Limits | None = None,
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        models: one, or two to compare.
        system: a system prompt in place of the templates' own.
        sampling: what the page begins with.
        names: the names by which it may be called, besides localhost and addresses.
        limits: what may be asked.
    """
    limits = limits or Limits()
    app = ChatApp(models, system=system, sampling=sampling or SamplingParams(), limits=limits)
    handlers: Mapping[Any, Any] = {BadRequestError: _bad_request, HTTPException: _http_error}
    inner = Starlette(routes=app.routes(), exception_handlers=handlers)
    return Guard(inner, frozenset({"localhost", *(name.lower() for name in names)}), RateLimit(limits.per_minute))


def serve(
    models: Sequence[VisionLanguageModel], *, system: str | None, sampling: SamplingParams, host: str, port: int
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: the address cannot be listened at.
    """
    app = build_app(models, system=system, sampling=sampling, names=[host, socket.gethostname()])
    with listening(host, port) as sock:
        address, bound = sock.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        if not ipaddress.ip_address(address).is_loopback:
            print(
                f"mmtune: warning: --host {visible(host)}: whoever reaches this machine on port {bound} can use the "
                "models and read nothing else; there is no password and no encryption",
                file=sys.stderr,
            )
        print(f"http://{shown}:{bound}   Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(server_config(app)).run(sockets=[sock])


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How the page is served."""
    return uvicorn.Config(
        app,
        http=LimitedConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # they would let a client choose the address that its messages are counted by
        lifespan="off",
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
    )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there.

    Raises:
        UserError: it cannot.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server((str(address[0]), port), family=family, backlog=64)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}); --port 0 takes a free port"
        ) from None
    with sock:
        yield sock


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _line(**event: Any) -> str:
    return json.dumps(event) + "\n"


def _error(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": why}, status, headers)


async def _bad_request(request: Request, error: BadRequestError) -> Response:
    return _error(error.status, visible(str(error)))


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail)
