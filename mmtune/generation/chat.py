"""Conversation with a model: answers are streamed, and earlier turns are not computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from mmtune.common.errors import UserError
from mmtune.data.conversation import IMAGE_PLACEHOLDER, is_unicode
from mmtune.data.rendering.templates import THOUGHT_END
from mmtune.generation.calls import ImageInputs, images_of_turn, one_text
from mmtune.generation.prompts import PromptEncoder
from mmtune.generation.request import closed, engine_of, passes_of, stop_conditions
from mmtune.interfaces import FinishReason, SamplingParams, Turn
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import Counts, PrefixSharing
from mmtune.models.decoding.sampler import Numbers, Sampler, random_numbers
from mmtune.models.decoding.session import Session
from mmtune.models.window import answer_room, room_left

if TYPE_CHECKING:
    from mmtune.generation.generator import VisionLanguageModel


class Chat:
    """Conversation of several turns, with or without images.

    Each turn is rendered with all turns before it, as in training. The keys and values of the tokens that the new text
    and the previous text begin with are kept, so that a turn costs only its own tokens. Where the template renders an
    earlier turn in another form, or the tokenizer splits an answer into other tokens than the model generated, all that
    follows is computed again. A model that computes sequences one by one computes all tokens again. An image goes
    through the tower once.

    Attributes:
        model: model that answers.
        turns: turns so far, without the system prompt.
        images: images of all turns, in order.
        forgotten: number of turns, from the first on, that the model no longer receives.
        finish_reason: reason why the last answer ended: `stop`, `length`, `window`, or `thinking` where the thought
            used up its budget; None before there is an answer.
    """

    def __init__(self, model: VisionLanguageModel, *, system: str | None = None) -> None:
        """
        Args:
            model: model that answers.
            system: a system prompt in place of the template's own.

        Raises:
            UserError: the system prompt contains `<image>`, or is not valid Unicode.
        """
        if system is not None and IMAGE_PLACEHOLDER in one_text(system, "the system prompt"):
            raise UserError(f"the system prompt holds {IMAGE_PLACEHOLDER}; photos belong to what the user says")
        self.model = model
        self._system = [Turn("system", _checked(system))] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Remove all turns and images."""
        self.turns: list[Turn] = []
        self.images: list[Image.Image] = []
        self.forgotten = 0
        self.finish_reason: FinishReason | None = None
        self._encoder = PromptEncoder(self.model)
        packed = self.model.fitness.packed
        engine = Session(passes_of(self.model, self._encoder)) if packed else engine_of(self.model, self._encoder)
        assert not isinstance(engine, PrefixSharing)
        self._engine = engine

    def say(
        self,
        text: str,
        images: ImageInputs = (),
        *,
        sampling: SamplingParams | None = None,
    ) -> Generator[str, None, None]:
        """Send a turn of the user, and yield the answer piece by piece.

        If the caller stops reading early, the answer is recorded as far as it was read; if nothing was read, the turn
        is not recorded. With `sampling.thinking_budget` the thought comes first.

        Args:
            text: text of the user, with `<image>` in place of each image; without such marks the images come first.
            images: the images of this turn, one or several; see `mmtune.generation.calls.ImageInput`.
            sampling: sampling options of the answer; greedy by default.

        Yields:
            The pieces of the answer; together they are what `generate` gives for the same prompt.

        Raises:
            UserError: the turn is empty, images and marks differ in number, the model has no vision tower, the
                conversation is longer than the model can read, its template has no thoughts, or `sampling.n` is not 1.
                The turn is then not recorded.
        """
        sampling = sampling or SamplingParams()
        if sampling.n != 1:
            raise UserError(f"n {sampling.n}: a conversation goes on with one answer; leave it out")
        shown = images_of_turn(images)
        turn = Turn("user", self._marked(text, len(shown)))
        all_images = [*self.images, *shown]
        self.finish_reason = None
        prompt, seen = self._prompt(turn, all_images, sampling)
        answer, over = "", False
        try:
            for piece in self._answer(prompt, seen, sampling):
                answer += piece
                yield piece
            over = True
        finally:
            if answer or over:
                # an `<image>` that the model wrote is text, not an image
                self.turns += [turn, Turn("assistant", answer.replace(IMAGE_PLACEHOLDER, "image"))]
                self.images = all_images

    def _marked(self, text: str, images: int) -> str:
        """Return the text with an `<image>` mark for each image."""
        text = _checked(text)
        marks = text.count(IMAGE_PLACEHOLDER)
        if not marks:
            text, marks = f"{IMAGE_PLACEHOLDER}\n" * images + text, images
        if not text.strip():
            raise UserError("nothing was said; write something, or give a photo")
        if marks != images:
            raise UserError(f"{marks} {IMAGE_PLACEHOLDER} mark(s) but {images} photo(s); every mark needs its photo")
        if images and self.model.tower is None:
            raise UserError(f"{self.model.name} has no vision tower, so it cannot see photos")
        return text

    def _prompt(
        self, turn: Turn, images: Sequence[Image.Image], sampling: SamplingParams
    ) -> tuple[str, Sequence[Image.Image]]:
        """Render the conversation and select its images; with the rule `shorten`, the oldest turns may be dropped."""
        window, room = self.model.window, sampling.max_tokens + sampling.thinking_budget
        forgotten = self.forgotten
        while True:
            turns = self.turns[forgotten:]
            prompt = self.model.template.prompt([*self._system, *turns, turn], thinking=sampling.thinking_budget > 0)
            seen = images[sum(said.text.count(IMAGE_PLACEHOLDER) for said in self.turns[:forgotten]) :]
            if window is None:
                break
            tokens = len(self._encoder.token_ids(prompt, seen))
            if self.model.past_window == "shorten" and turns and tokens + answer_room(window, room) > window:
                forgotten += 2  # a question and its answer
                continue
            if tokens >= window:
                said = "what is said is" if not turns else "the conversation is"
                advice = "say less" if not turns else "start a new one, or let it forget its oldest turns (past_window)"
                raise UserError(f"{said} {tokens:,} tokens long, and {self.model.name} reads {window:,}; {advice}")
            break
        self.forgotten = forgotten
        return prompt, seen

    def _answer(self, prompt: str, images: Sequence[Image.Image], sampling: SamplingParams) -> Iterator[str]:
        """Yield the pieces of the thought, if there is a thinking budget, and of the answer."""
        sampler, numbers = Sampler(sampling), random_numbers(sampling.seed, f"turn {len(self.turns)}", 0)
        if sampling.thinking_budget:
            thought = ""
            for piece in self._written(prompt, images, sampling.thinking_budget, (THOUGHT_END,), sampler, numbers):
                thought += piece
                yield piece
            end = ""
            if not thought.endswith(THOUGHT_END):
                if sampling.thinking_overrun == "unparsed" or self.finish_reason == "stop":
                    self.finish_reason = "thinking" if self.finish_reason == "length" else self.finish_reason
                    return
                end = closed(thought).removeprefix(thought)
            yield f"{end}\n\n"
            prompt += f"{thought}{end}\n\n".replace(IMAGE_PLACEHOLDER, "image")
        yield from self._written(prompt, images, sampling.max_tokens, sampling.stop, sampler, numbers)

    def _written(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        most: int,
        stop: Sequence[str],
        sampler: Sampler,
        numbers: Numbers,
    ) -> Iterator[str]:
        """Yield the continuation of a text, at most `most` tokens, each piece once it can no longer change."""
        ids = self._encoder.token_ids(prompt, images)
        limit = room_left(len(ids), most, self.model.window)
        if limit < 1:  # a thought has taken all the room
            self.finish_reason = "window"
            return
        draft = Draft(ids, stop_conditions(self.model, most, stop).within(limit), self.model.tokenizer, numbers)
        said = ""
        with contextlib.closing(self._engine.stream(draft, sampler)) as steps:
            for _ in steps:
                ready = draft.settled
                if len(ready) > len(said) and ready.startswith(said):
                    yield ready[len(said) :]
                    said = ready
        self.finish_reason = draft.finish_reason

    @property
    def counts(self) -> Counts:
        """Tokens computed, reused and generated since the last reset."""
        return self._engine.counts


def check_thinking(model: VisionLanguageModel, sampling: SamplingParams) -> None:
    """Check that the model's template has thoughts, if there is a thinking budget.

    Raises:
        UserError: there is a thinking budget, but the template has no thoughts.
    """
    if sampling.thinking_budget and model.thinking == "never":
        raise UserError(
            f"thinking_budget {sampling.thinking_budget}: {model.name} writes conversations with the template "
            f"{model.spec.template}, which knows no thoughts before an answer; leave it out"
        )


def _checked(text: str) -> str:
    text = one_text(text, "what is said")
    if not is_unicode(text):
        raise UserError("the text holds half of a surrogate pair, which no tokenizer reads")
    return text
