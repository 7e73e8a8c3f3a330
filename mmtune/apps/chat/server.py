"""Server of `mmtune chat --web`: the chat page, and streamed answers of one or two models.

Requests of other web pages are refused; there is no login. Answers are streamed as lines of JSON: `{"waiting": n}` with
the number of messages ahead in the queue, `{"text": piece}`, at the end `{"done": {…}}`, or `{"error": why}`.
Conversations are stored in memory only.
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

# no resources of other servers, no inline scripts, no requests to other servers, and no frames of other pages
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
    """ASGI middleware that refuses requests of other web pages, limits their rate, and adds security headers.

    Another page whose host name resolves to this server (DNS rebinding) is recognized by the Host header, and one that
    sends requests from its own address by the Origin header.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], rate: RateLimit) -> None:
        """
        Args:
            app: the application to protect.
            names: host names that requests may use, in lower case, besides IP addresses.
            rate: rate limit of each client address.
        """
        self._app, self._names, self._rate = app, names, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or refuse it; the security headers are added in both cases."""
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
    """Return whether a Host header is one of these names or an IP address, which DNS rebinding cannot use."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name in names


class ChatApp:
    """Handlers of the routes, with the models, the conversations and the queues."""

    def __init__(
        self, models: Sequence[VisionLanguageModel], *, system: str | None, sampling: SamplingParams, limits: Limits
    ) -> None:
        """
        Args:
            models: one, or two to compare.
            system: a system prompt in place of the templates' own.
            sampling: default sampling options.
            limits: limits on conversations, messages and requests.
        """
        self._models, self._sampling, self._limits = models, sampling, limits
        self._sessions = Sessions(models, system, limits.conversations)
        self._turnstiles = [Turnstile(limits.waiting) for _ in models]
        self._asking: Counter[str] = Counter()  # number of unanswered messages of each address
        page = importlib.resources.files("mmtune.apps.chat") / "page"
        look = importlib.resources.files("mmtune.analysis") / "templates" / "page.css"
        self._files = {
            "/": ("text/html", (page / "chat.html").read_bytes()),
            "/chat.js": ("text/javascript", (page / "chat.js").read_bytes()),
            "/chat.css": ("text/css", look.read_bytes() + (page / "chat.css").read_bytes()),
        }

    def routes(self) -> list[Route]:
        """Return all routes: the three files of the page, and the requests that it sends."""
        return [
            *(Route(path, self.file) for path in self._files),
            Route("/about", self.about),
            Route("/conversations", self.begin, methods=["POST"]),
            Route("/conversations/{key}/{model:int}", self.say, methods=["POST"]),
        ]

    async def file(self, request: Request) -> Response:
        """Return one of the page's files."""
        media_type, content = self._files[request.url.path]
        return Response(content, media_type=media_type)

    async def about(self, request: Request) -> Response:
        """Return the models, the default sampling options and the limits as JSON."""
        models = [{"name": visible(one.name), "sees": one.tower is not None} for one in self._models]
        return JSONResponse({"models": models, "sampling": asdict(self._sampling), "limits": asdict(self._limits)})

    async def begin(self, request: Request) -> Response:
        """Create a conversation and return its key as JSON; see `Sessions.begin` for the limit."""
        return JSONResponse({"conversation": self._sessions.begin(_address(request))})

    async def say(self, request: Request) -> Response:
        """Send a message to one of the models of a conversation, and stream the answer."""
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
        """Yield the lines of an answer; it is generated token by token, and ends when the client disconnects."""
        if number in session.busy:  # two requests arrived before either was answered
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
            self._asking += Counter()  # removes addresses without unanswered messages


def build_app(
    models: Sequence[VisionLanguageModel],
    *,
    system: str | None = None,
    sampling: SamplingParams | None = None,
    names: Sequence[str] = (),
    limits: Limits | None = None,
) -> ASGIApp:
    """Build the server as an ASGI application.

    Args:
        models: one, or two to compare.
        system: a system prompt in place of the templates' own.
        sampling: default sampling options.
        names: host names that requests may use, besides localhost and IP addresses.
        limits: limits on conversations, messages and requests.
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
        UserError: the server cannot listen at the address.
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
    """Return uvicorn's configuration of the server."""
    return uvicorn.Config(
        app,
        http=LimitedConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # with them, a client could choose the address for which its messages are counted
        lifespan="off",
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
    )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket that listens at the address; it is closed at the end of the block.

    Raises:
        UserError: the server cannot listen at the address.
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
