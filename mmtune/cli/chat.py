"""`mmtune chat`: conversation with a model in the terminal, or in a web page on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.text import visible
from mmtune.data.images import load_image

if TYPE_CHECKING:
    from mmtune.generation.chat import Chat
    from mmtune.generation.generator import VisionLanguageModel
    from mmtune.interfaces import SamplingParams

HELP = """\
/image FILE  show a photo with what you say next; several for several photos
/reset       forget the conversation and begin another
/help        this list
/exit        leave; so does Ctrl-D
Ctrl-C stops an answer, and the conversation goes on."""


@dataclass
class ChatOptions:
    """Talk to a model, about photos too: in the terminal, or with --web in a page.

    From a pipe, every line is a turn, and an error ends the conversation.

    Attributes:
        model: a run directory, a saved model, or a language model (folder or hub id).
        image: a photo to show with the first message.
        language: the language model that adapters or a projector belong to, in place of the one that they name (which
            may be a path on another machine).
        template: the template of --model (not of --compare) that renders conversations (vicuna_v1, llama_2, chatml,
            tokenizer), in place of the recorded one. Folders of the released LLaVA code record none: vicuna_v1 is used.
        template_date: the date (2026-01-31) that the template of --model writes in place of today's date, instead of
            the recorded one.
        system: a system prompt in place of the template's own.
        temperature: 0 answers with the likeliest token each time; above, tokens are drawn, the more evenly the higher.
        top_p: draw only from the likeliest tokens that together have this probability.
        max_tokens: the most tokens an answer may have.
        thinking_budget: let the model think before it answers, at most so many tokens, and show the thought; 0 answers
            at once. For models whose template supports it, as Qwen3's.
        past_window: for a conversation longer than the model can read: refuse the message, or shorten the conversation
            by the oldest questions, with their answers and photos.
        seed: the same seed draws the same answers; a new one each time where not given.
        device: auto (the GPU where there is one), cpu, cuda, cuda:1.
        web: serve a page for a browser on this machine.
        compare: with --web, a second model that answers beside the first.
        host: with --web, the address to listen at. With another address than this machine's own (127.0.0.1), anyone who
            can reach it can use the models.
        port: with --web, the port; 0 takes a free one.
    """

    model: str
    image: str | None = None
    language: str | None = None
    template: str | None = None
    template_date: str | None = None
    system: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    thinking_budget: int = 0
    past_window: Literal["refuse", "shorten"] = "refuse"
    seed: int | None = None
    device: str = "auto"
    web: bool = False
    compare: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        if self.compare is not None and not self.web:
            raise UserError(f"--compare {self.compare}: two models are compared in a page; add --web")
        if self.image is not None and self.web:
            raise UserError(f"--image {self.image}: with --web, photos are given in the page; leave it out")
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port}: give a number from 0 (any that is free) to 65535")


def main(argv: list[str]) -> int:
    """Load the model, and hold the conversation until the user leaves; return the exit status 0.

    Raises:
        UserError: there is no such model, photo or device, a package is missing, an option is out of range; from a
            pipe, also an invalid line.
    """
    options = parse(build_parser("chat", ChatOptions), ChatOptions, argv)
    if options.web and not all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn")):
        raise UserError("--web needs starlette and uvicorn; pip install 'mmtune[web]' brings them")

    from mmtune.generation.chat import Chat, check_thinking
    from mmtune.interfaces import SamplingParams
    from mmtune.models.window import checked_past_window

    past_window = checked_past_window(options.past_window)
    sampling = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=options.seed,
        thinking_budget=options.thinking_budget,
        thinking_overrun="close",
    )
    images = [load_image(Path(options.image), "--image")] if options.image is not None else []
    given = {"language": options.language, "template": options.template, "template_date": options.template_date}
    models = [load(options.model, options.device, **given)]
    if options.compare is not None:
        models.append(load(options.compare, options.device))
    for model in models:
        check_thinking(model, sampling)
        model.past_window = past_window
    if options.web:
        from mmtune.apps.chat.server import serve

        serve(models, system=options.system, sampling=sampling, host=options.host, port=options.port)
    else:
        Conversation(Chat(models[0], system=options.system), sampling, images).run()
    return 0


def load(name: str, device: str, **given: str | None) -> VisionLanguageModel:
    """Load a model as for an evaluation: adapters are merged into the weights, which is faster, unless quantized."""
    from mmtune.evaluation.run.load_model import fold_adapters, load_model
    from mmtune.generation.generator import VisionLanguageModel

    model = load_model(name, device, **given)
    assert isinstance(model, VisionLanguageModel)
    fold_adapters(model)
    return model


class Conversation:
    """Conversation in the terminal, or by lines from a pipe."""

    def __init__(self, chat: Chat, sampling: SamplingParams, images: list[Image.Image]) -> None:
        """
        Args:
            chat: conversation with the model.
            sampling: sampling options of the answers.
            images: images of the first message.
        """
        self._chat, self._sampling, self._images = chat, sampling, images
        self._live, self._forgotten = sys.stdin.isatty(), 0

    def run(self) -> None:
        """Read messages and commands, and print the answers, until the user leaves.

        Raises:
            UserError: a line from a pipe is invalid; in a terminal, the error is printed, and the next line is read.
        """
        if self._live:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # arrow keys and history for input()
            sees = "; /image FILE shows it a photo" if self._chat.model.tower is not None else ""
            print(f"{visible(self._chat.model.name)}: /help lists what there is besides talking{sees}", flush=True)
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line or self._images:
                    self._say(line)
            except UserError as error:
                if not self._live:
                    raise
                print(visible(f"{error}"), file=sys.stderr, flush=True)

    def _lines(self) -> Iterator[str]:
        if not self._live:
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # invalid UTF-8 is no reason to end
            yield from (line.strip() for line in sys.stdin)
            return
        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D leaves)")

    def _say(self, text: str) -> None:
        """Send a message, and print the answer while it is generated.

        Raises:
            UserError: the message is refused; its images are kept for the next one.
        """
        images, self._images = self._images, []
        try:
            with contextlib.closing(self._chat.say(text, images, sampling=self._sampling)) as pieces:
                before = ""
                for piece in pieces:
                    sys.stdout.write(visible(piece, before))  # depends on the piece before, unlike print
                    sys.stdout.flush()
                    before = piece or before
            print(flush=True)
            self._tell_of_window()
        except UserError:
            self._images = images
            raise
        except KeyboardInterrupt:
            if not self._live:
                raise
            print(" (stopped)", flush=True)

    def _tell_of_window(self) -> None:
        """Print to stderr whether the context window cut off the answer, or removed turns of the conversation."""
        window = self._chat.model.window
        if self._chat.finish_reason == "window":
            print(f"(cut off: the model reads {window:,} tokens; /reset begins anew)", file=sys.stderr, flush=True)
        if self._chat.forgotten > self._forgotten:
            told = f"(the first {self._chat.forgotten // 2} questions with their answers are forgotten"
            print(f"{told}: the model reads {window:,} tokens)", file=sys.stderr, flush=True)
        self._forgotten = self._chat.forgotten

    def _command(self, line: str) -> bool:
        """Run a command, a line that begins with a slash; return False if it ends the conversation.

        Raises:
            UserError: there is no such command, or its image cannot be shown.
        """
        name, _, rest = line.partition(" ")
        if name == "/exit":
            return False
        if name == "/help":
            print(HELP, flush=True)
        elif name == "/reset":
            self._chat.reset()
            self._images = []
            self._note("The conversation begins anew.")
        elif name == "/image":
            self._show(rest.strip())
        else:
            raise UserError(f"{name}: {did_you_mean(name, ['/image', '/reset', '/help', '/exit'])}")
        return True

    def _show(self, file: str) -> None:
        if not file:
            raise UserError("/image: name the photo's file, as /image cat.jpg")
        # quotes and escapes, as terminals add them to a path that is dropped there
        path = Path(file.strip("'\"").replace("\\ ", " ")).expanduser()
        if self._chat.model.tower is None:
            raise UserError(f"/image {file}: {self._chat.model.name} has no vision tower, so it cannot see photos")
        image = load_image(path, "/image")
        self._images.append(image)
        self._note(f"{path.name}, {image.width} × {image.height}: it goes with what you say next.")

    def _note(self, text: str) -> None:
        """Print a text on a terminal; print nothing if the input is a pipe."""
        if self._live:
            print(visible(text), flush=True)
