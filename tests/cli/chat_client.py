"""A client and a server of the chat page, for its tests."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from PIL import Image

from mmtune.apps.chat.limits import Limits
from mmtune.apps.chat.server import build_app, listening, server_config
from mmtune.generation.generator import VisionLanguageModel

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202e\x1b[2J"
ODD_NUMBERS = (1e-300, 5e-324, 1e-9, -1e-300, -1, 11, "1", True, [1], {}, "nan")
FEW = Limits(text=200, photo_bytes=20_000, photo_pixels=100_000, photos=2, turns=3, conversations=2, waiting=1)


class Client:
    """Speaks to a server, as a page would unless told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, {**kind, **(headers or {})})
        return connection, connection.getresponse()

    def status(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        _, response = self.ask(path, body, headers)
        return response.status, response.read().decode()

    def begin(self) -> str:
        _, response = self.ask("/conversations", {})
        key: str = json.loads(response.read())["conversation"]
        return f"/conversations/{key}/0"

    def say(self, path: str, text: str, photo: bytes | None = None, **sampling: Any) -> list[dict[str, Any]]:
        _, response = self.ask(path, message(text, photo, **sampling))
        assert response.status == 200, response.read()
        return [json.loads(line) for line in response.read().splitlines()]


def message(text: str, photo: bytes | None = None, **sampling: Any) -> dict[str, Any]:
    return {"text": text, "photo": photo and base64.b64encode(photo).decode(), "sampling": sampling}


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(stream, "PNG")
    return stream.getvalue()


def waiting_until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def serving(*models: VisionLanguageModel, **options: Any) -> Iterator[Client]:
    """The server in a thread, at a free port."""
    with listening("127.0.0.1", 0) as sock:
        server = uvicorn.Server(server_config(build_app(models, **options)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        waiting_until(lambda: server.started)
        try:
            yield Client(sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
