"""`mmtune chat` by a pipe and in a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PIL import Image

from mmtune.cli import chat as command
from mmtune.cli.main import main
from mmtune.common.text import visible
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import SamplingParams

ENVIRONMENT = {"TERM": "dumb", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def piped(monkeypatch: pytest.MonkeyPatch, lines: str, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    return main(["chat", "--device", "cpu", "--max-tokens", "8", *flags])


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "a photo.png"
    Image.linear_gradient("L").convert("RGB").save(file)
    return file


def said(model: VisionLanguageModel, *turns: tuple[str, list[Path]], **options: float) -> list[str]:
    chat = Chat(model)
    sampling = SamplingParams(max_tokens=8, **options)
    return [
        visible("".join(chat.say(text, [Image.open(file) for file in files], sampling=sampling)))
        for text, files in turns
    ]


def test_every_line_of_a_pipe_is_a_turn(
    saved: Path,
    tiny: VisionLanguageModel,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = f"Look\n\n/image '{photo}'\nAnd this?\n/reset\nAnew\n/exit\nnever said\n"
    assert piped(monkeypatch, lines, "--model", str(saved), "--image", str(photo)) == 0
    first = said(tiny, ("Look", [photo]), ("And this?", [photo]))
    assert capsys.readouterr().out == "".join(f"{one}\n" for one in [*first, *said(tiny, ("Anew", []))])


def test_answers_are_drawn_as_asked(
    saved: Path, tiny: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--temperature", "2", "--top-p", "0.9", "--seed", "5"]
    assert piped(monkeypatch, "Hello", "--model", str(saved), *flags) == 0
    assert capsys.readouterr().out[:-1] == said(tiny, ("Hello", []), temperature=2.0, top_p=0.9, seed=5)[0]


def test_what_would_act_on_the_terminal_is_shown(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Chat, "say", lambda *_, **__: (piece for piece in ("\x1b[2J", "a\u202eb\r", "日本")))
    assert piped(monkeypatch, "Hello", "--model", str(saved)) == 0
    assert capsys.readouterr().out == "␛[2Ja⟨U+202E⟩b␍日本\n"


@pytest.mark.parametrize(
    ("lines", "flags", "named"),
    [
        ("/image none.png\n", [], "/image: the photo none.png does not exist"),
        ("/image\n", [], "/image: name the photo's file"),
        ("/imagine x\n", [], "/imagine: did you mean '/image'?"),
        ("What is <image>?\n", [], "0 photo"),
        ("", ["--image", "none.png"], "--image: the photo none.png does not exist"),
        ("", ["--temperature", "-1"], "temperature -1.0: give a number from 0"),
        ("", ["--temperature", "1e-300"], "temperature 1e-300: give a number from 0"),
        ("", ["--temperature", "nan"], "temperature nan: must be a number"),
        ("", ["--top-p", "1e-300"], "top_p 1e-300: give a number above 0"),
        ("", ["--top-p", "0"], "top_p 0.0: give a number above 0"),
        ("", ["--compare", "x"], "--compare x: two models are compared in a page; add --web"),
        ("", ["--web", "--image", "x.png"], "--image x.png: with --web"),
        ("", ["--web", "--port", "70000"], "--port 70000: give a number"),
        ("", ["--web", "--host", "203.0.113.7"], "--host 203.0.113.7 --port 8000: cannot listen there"),
        ("", ["--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_mistakes_are_one_line(
    saved: Path,
    lines: str,
    flags: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert piped(monkeypatch, lines, "--model", str(saved), *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune: error: ")]
    assert len(errors) == 1
    assert named in errors[0]


def test_a_model_without_a_tower_says_so(
    llama: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmtune.models.spec import ModelSpec

    VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml")).save_pretrained(tmp_path / "text")
    assert piped(monkeypatch, f"/image {photo}\n", "--model", str(tmp_path / "text")) == 2
    assert "has no vision tower" in capsys.readouterr().err


def test_the_page_needs_its_libraries(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert piped(monkeypatch, "", "--model", str(saved), "--web") == 2
    assert "pip install 'mmtune[web]'" in capsys.readouterr().err


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C reaches who has the terminal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which jobs in the background are started without


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        settings = termios.tcgetattr(theirs)
        settings[3] |= termios.NOFLSH  # else Ctrl-C may take with it what was answered to it
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmtune.cli.main", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str, seconds: float = 90) -> str:
        """What is shown until this is, and no more is asked to."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} never shown: {self.shown!r}"
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._ours, 4096).decode(errors="replace")
                except OSError:  # the other side has closed
                    break
        before, _, self.shown = self.shown.partition(text)
        return before

    def press(self, key: str, text: str) -> None:
        """Press a key until this is shown: Python may miss a signal between two looks at the keyboard."""
        for _ in range(10):
            self.type(key)
            with contextlib.suppress(AssertionError):
                self.until(text, 3)
                return
        raise AssertionError(f"{text!r} never shown: {self.shown!r}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        os.close(self._ours)


def test_in_a_terminal(saved: Path, tiny: VisionLanguageModel, photo: Path) -> None:
    terminal = Terminal("chat", "--model", str(saved), "--device", "cpu", "--max-tokens", "3500")
    try:
        assert "/help lists" in terminal.until("> ")
        terminal.type("/nonsense\n")
        terminal.until("choose one of: /exit, /help, /image, /reset")
        terminal.until("> ")
        terminal.type(f"/image {photo}\n")
        terminal.until("a photo.png, 256 × 256: it goes with what you say next.")
        terminal.until("> ")
        terminal.type("Look\n")
        first = "".join(Chat(tiny).say("Look", [Image.open(photo)], sampling=SamplingParams(max_tokens=10)))
        terminal.until(visible(first).splitlines()[0][:4])  # the answer comes while it is made
        terminal.type("\x03")
        terminal.until(" (stopped)")
        terminal.until("> ")
        terminal.type("abc")
        terminal.until("abc")
        terminal.press("\x03", "(Ctrl-D leaves)")
        terminal.until("> ")
        terminal.type("/reset\n")
        terminal.until("begins anew")
        terminal.until("> ")
        terminal.type("\x1b[A")  # the line before, from readline's history
        terminal.until("/reset")
        terminal.type("\x15/help\n")
        terminal.until("Ctrl-C stops an answer")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
