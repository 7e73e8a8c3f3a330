"""A Chromium without a window that a test drives by its DevTools protocol, over a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM


class Tab:
    """A page in the browser.

    Attributes:
        console: what it told the console, refusals by its Content-Security-Policy among it.
    """

    def __init__(self, send: int, receive: Any) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self._session: str | None = None
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("method") in ("Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(answer["params"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"never true: {expression}; {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, url: str, ready: str) -> None:
        """Go to an address and wait until an expression is true there."""
        self.call("Page.navigate", url=url)
        self.wait(ready)

    def type(self, text: str) -> None:
        """Write where the cursor is."""
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Press the key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def drop(self, file: Path, x: int = 200, y: int = 200) -> None:
        """Drop a file on the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def picture(self, file: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Take a picture of the window at a size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _message(self) -> bytes:
        message = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            if not byte:
                pytest.skip("chromium does not start here")
            message += byte
        return bytes(message)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Callable[[], Tab]]:
    """A browser with a fresh profile; called, it opens a tab."""
    to_browser, ours = os.pipe()
    from_browser, to_us = os.pipe()
    command = [*CHROMIUM, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    shell = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{to_us}', "bash", *command]
    process = subprocess.Popen(
        shell, pass_fds=(to_browser, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(to_us)
    try:
        with os.fdopen(from_browser, "rb") as receive:
            yield lambda: Tab(ours, receive)
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours)
