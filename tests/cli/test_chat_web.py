"""The page of `mmtune chat --web`: what it serves and refuses, and in a real browser."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser import needs_browser
from chat_client import EVIL, FEW, ODD_NUMBERS, Client, message, png, serving, waiting_until
from devtools import browser
from pictures import png_saying
from PIL import Image

from mmtune.apps.chat.limits import Limits
from mmtune.apps.chat.server import called_by_name
from mmtune.common.text import visible
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import SamplingParams


def test_a_conversation_is_that_of_the_package(tiny: VisionLanguageModel) -> None:
    with serving(tiny, system="Be brief.", sampling=SamplingParams(max_tokens=9)) as client:
        path = client.begin()
        events = [client.say(path, "Hello"), client.say(path, "And this?", png(30, 20), max_tokens=5)]
        drawn = [client.say(client.begin(), "Hello", temperature=2, seed=4) for _ in range(2)]
    chat = Chat(tiny, system="Be brief.")
    photo = Image.open(io.BytesIO(png(30, 20)))
    expected = ["".join(chat.say("Hello", sampling=SamplingParams(max_tokens=9)))]
    expected.append("".join(chat.say("And this?", [photo], sampling=SamplingParams(max_tokens=5))))
    assert ["".join(e.get("text", "") for e in one) for one in events] == [visible(text) for text in expected]
    assert [set(one[-1]["done"]) for one in events] == [{"tokens", "seconds"}] * 2
    assert sum("text" in event for event in events[0]) > 1  # it was streamed
    texts = ["".join(e.get("text", "") for e in one) for one in drawn]
    assert texts[0] == texts[1] != visible(expected[0])


def test_the_page_is_served_by_name_and_nothing_else(tiny: VisionLanguageModel) -> None:
    with serving(tiny) as client:
        for path, kind in (("/", "text/html"), ("/chat.js", "text/javascript"), ("/chat.css", "text/css")):
            _, response = client.ask(path)
            assert response.status == 200
            assert response.headers["Content-Type"].startswith(kind)
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert b"http" not in response.read()  # nothing from elsewhere
        for path in ("/chat.py", "/../chat.py", "/%2e%2e/chat.py", "/chat_page/", "/etc/passwd", "/docs", "/x\\..\\y"):
            assert client.status(path)[0] == 404
        about = json.loads(client.status("/about")[1])
        assert about["models"] == [{"name": tiny.name, "sees": True}]
        _, response = client.ask("/conversations", {}, method="PUT")
        assert response.status == 405


def test_other_pages_may_not_ask(tiny: VisionLanguageModel) -> None:
    with serving(tiny, names=["my-machine"]) as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[", "my-machine2"):
            assert client.status("/", headers={"Host": host})[0] in (400, 421), host
        for host in ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:8000", "my-machine:80"):
            assert client.status("/", headers={"Host": host})[0] == 200, host
        own = f"http://127.0.0.1:{client.port}"
        for origin in (
            "http://evil.example",
            "null",
            f"https://127.0.0.1:{client.port}",
            "http://127.0.0.1:1",
            own + "/",
        ):
            assert client.status("/conversations", {}, {"Origin": origin})[0] == 403, origin
        assert client.status("/conversations", {}, {"Origin": own})[0] == 200
        # what a form of another page can send without asking first
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            assert client.status("/conversations", {}, {"Content-Type": kind})[0] == 415


def test_names_and_addresses() -> None:
    names = frozenset({"localhost", "box"})
    assert all(called_by_name(host, names) for host in ("localhost", "box:1", "10.0.0.7:80", "[fe80::1]:80"))
    assert not any(called_by_name(host, names) for host in ("", "x", "box.x", "1.2.3.4.x", "[", "[x]", "::", "a@x"))


def test_what_is_too_much_is_refused(tiny: VisionLanguageModel) -> None:
    limits = replace(FEW, per_minute=1000)
    with serving(tiny, limits=limits, sampling=SamplingParams(max_tokens=2)) as client:
        path = client.begin()
        refused = [
            (message("x" * 201), 413, "at most 200 characters"),
            (message("x", b"\0" * 20_001), 413, "at most 0 MB"),
            (b"x" * (FEW.body + 1), 413, "at most"),
            (message("x", png_saying(1000, 101, zlib.compress(bytes(1000)))), 413, "megapixels"),
            (message("x", png_saying(100_000, 100_000, zlib.compress(bytes(1000)))), 400, "far too large"),
            (message("x", png_saying(300, 300, zlib.compress(bytes(1000)))), 400, "cannot be decoded"),
            (message("x", b"%!PS-Adobe-3.0 EPSF-3.0\n"), 400, "no PNG, JPEG"),
            (message("x", png(20, 20)[:60]), 400, "photo"),
            ({"text": "x", "photo": "%%%"}, 400, "base64"),
            ({"text": "x", "photo": 7}, 400, "message: photo: must be text, not 7"),
            ({"text": 7}, 400, "message: text: must be text, not 7"),
            ([], 400, "message: must be a mapping"),
            ({}, 400, "message: key 'text' is missing"),
            (b"{", 400, "not JSON"),
            (b"[" * 1500, 400, "not JSON"),
            (message("x", max_tokens=5000), 400, "at most 2,048"),
            (message("x", max_tokens=1.5), 400, "sampling: max_tokens: must be a whole number, not 1.5"),
            (message("x", temperature="hot"), 400, "temperature"),
            (message("x", temperature=True), 400, "temperature"),
            (b'{"text": "x", "sampling": {"temperature": NaN}}', 400, "temperature"),
            *((message("x", **{n: v}), 400, n) for n in ("temperature", "top_p") for v in ODD_NUMBERS),
            *(
                (b'{"text": "x", "sampling": {"%s": %s}}' % (n, v), 400, n.decode())
                for n in (b"temperature", b"top_p")
                for v in (b"NaN", b"Infinity", b"-Infinity", b"1e-300", b"1e999", b"9" * 400)
            ),
            (message("x", top_p=0), 400, "top_p"),
            (message("x", seed=-1), 400, "seed"),
            ({"text": "x", "sampling": []}, 400, "sampling"),
        ]
        for body, status, why in refused:
            found = client.status(path, body)
            assert (found[0], why in found[1]) == (status, True), (body if len(str(body)) < 200 else why, found)
        assert client.status("/conversations/none/0", message("x"))[0] == 404
        assert client.status(path[:-1] + "1", message("x"))[0] == 404
        # mistakes that only the model sees come with the answer; none of them was a turn
        for text, why in (("<image>", "0 photo"), (" ", "nothing was said"), ("\ud83d", "surrogate")):
            assert why in client.say(path, text)[-1]["error"]
        for _ in range(3):
            assert "done" in client.say(path, "more")[-1]
        assert client.status(path, message("more"))[0] == 413
        seen = client.begin()
        for _ in range(2):
            assert "done" in client.say(seen, "look", png(9, 9))[-1]
        assert "at most 2 photos" in client.status(seen, message("look", png(9, 9)))[1]
        client.begin()
        assert client.status(path, message("x"))[0] == 404  # the one longest silent is forgotten


def test_large_photos_are_kept_small(tiny: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Image.Image] = []
    monkeypatch.setattr(Chat, "say", lambda self, text, images, **_: (str(seen.append(one)) for one in images))
    with serving(tiny) as client:
        client.say(client.begin(), "x", png(5000, 100))
    assert [photo.size for photo in seen] == [(2048, 41)]


def test_hostile_answers_are_legible(tiny: VisionLanguageModel, spoken: dict[str, Any]) -> None:
    with serving(tiny) as client:
        events = client.say(client.begin(), "x")
    assert "".join(event.get("text", "") for event in events) == visible(EVIL)
    assert "⟨U+202E⟩␛[2J" in visible(EVIL)


def test_the_command_serves_and_ends(saved: Path) -> None:
    command = [sys.executable, "-m", "mmtune.cli.main", "chat", "--web", "--model", str(saved), "--device", "cpu"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        assert Client(int(line.split()[0].rsplit(":", 1)[1])).status("/about")[0] == 200
        process.send_signal(2)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "warning" not in errors
        assert "Traceback" not in errors
    finally:
        process.kill()


def test_another_host_is_warned_of(
    tiny: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmtune.apps.chat.server import serve

    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        serve([tiny], system=None, sampling=SamplingParams(), host=host, port=0)
        error = capsys.readouterr().err
        assert ("warning: --host 0.0.0.0: whoever reaches this machine" in error) == warned


@needs_browser
def test_in_a_browser(
    tiny: VisionLanguageModel, spoken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / 'x"><img src=x onerror=document.title=1>\u202egpj.png'
    photo.write_bytes(png(60, 40))
    title = "document.title"
    idle = "document.getElementById('stop').hidden"
    answers = "[...document.querySelectorAll('.answer .text')].map((one) => one.textContent)"
    with serving(tiny, tiny) as client, browser(tmp_path / "profile") as open_tab:
        tab = open_tab()
        tab.open(f"http://127.0.0.1:{client.port}/", "document.body && document.body.dataset.ready")
        named = tab.evaluate(title)
        # a photo is dropped, a message is typed and sent
        tab.drop(photo)
        tab.wait("document.getElementById('preview').naturalWidth === 60")
        assert "⟨U+202E⟩gpj.png" in tab.evaluate("document.getElementById('filename').textContent")
        tab.evaluate("document.getElementById('text').focus()")
        tab.type("What <b>is</b> it?")
        tab.press_enter()
        tab.wait("document.querySelectorAll('.note').length === 2")
        tab.wait(idle)
        # both models' answers, as text
        assert tab.evaluate(answers) == [visible(EVIL)] * 2
        said = tab.evaluate("document.querySelector('.said').innerText")
        assert "What <b>is</b> it?" in said
        assert "⟨U+202E⟩gpj.png" in said
        assert tab.evaluate("document.querySelector('.said img').naturalWidth") == 60
        assert tab.evaluate("document.querySelectorAll('#log img, #log script, #log b').length") == 1
        assert tab.evaluate(title) == named
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # an answer comes in pieces, and is stopped
        spoken["pieces"] = ["more "] * 100_000
        closed = spoken["closed"]
        tab.type("Go on")
        tab.press_enter()
        tab.wait("document.querySelectorAll('.answer').length === 4")
        short = tab.wait(f"{answers}[2].length")
        tab.wait(f"{answers}[2].length > {short}")
        tab.evaluate("document.getElementById('stop').click()")
        tab.wait(idle)
        assert tab.evaluate("document.querySelectorAll('.note')[2].textContent") == "stopped"
        waiting_until(lambda: spoken["closed"] == closed + 2)
        # a conversation that the server has forgotten: said, and the message is not lost
        tab.evaluate("document.getElementById('anew').click()")
        assert tab.evaluate("document.getElementById('log').childElementCount") == 0
        spoken["pieces"] = ["yes"]
        tab.type("First")
        tab.press_enter()
        tab.wait(f"{answers}.length === 2 && {idle}")
        for _ in range(Limits().conversations):
            client.begin()
        tab.type("Second")
        tab.press_enter()
        tab.wait(f"{answers}.length === 4 && {idle}")
        assert "no longer kept" in tab.evaluate("document.querySelectorAll('.note')[2].textContent")
        assert tab.evaluate("document.getElementById('text').value") == "Second"
        # so is one that the models cannot take
        monkeypatch.undo()
        tab.evaluate("document.getElementById('anew').click(); document.getElementById('text').value = ''")
        tab.type("An <image>?")
        tab.press_enter()
        tab.wait(f"document.querySelectorAll('.note.bad').length === 2 && {idle}")
        assert tab.evaluate("document.getElementById('text').value") == "An <image>?"
        assert [line for line in tab.console if "Content Security" in line or "exception" in line] == []
