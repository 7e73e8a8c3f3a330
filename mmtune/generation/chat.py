"""A conversation with a model: it answers while it thinks, and what was said is not computed again."""

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
    """A conversation of several turns, about photos or not.

    Each turn is rendered with all before it, as in training. Keys and values of the tokens that the text before began
    with too are kept, so that a turn costs its own tokens; where the template writes earlier turns otherwise than they
    were said, or the tokenizer cuts an answer otherwise than the model said it, what follows that place is computed
    anew, as is all of it by a model that is computed one by one. A photo goes through the tower once.

    Attributes:
        model: answers.
        turns: what was said, without the system prompt.
        images: those of all turns, in order.
        forgotten: how many of the turns, from the first on, the model is no longer shown.
        finish_reason: why the last answer ended: `stop`, `length` or `window`; None before there is one.
    """

    def __init__(self, model: VisionLanguageModel, *, system: str | None = None) -> None:
        """
        Args:
            model: answers.
            system: a system prompt in place of the template's own.

        Raises:
            UserError: the system prompt has a photo's mark, or is no Unicode.
        """
        if system is not None and IMAGE_PLACEHOLDER in one_text(system, "the system prompt"):
            raise UserError(f"the system prompt holds {IMAGE_PLACEHOLDER}; photos belong to what the user says")
        self.model = model
        self._system = [Turn("system", _checked(system))] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Forget all that was said and seen."""
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
        """Say something, and hear the answer piece by piece.

        An answer that is not heard to its end counts as far as it was heard; if that is nothing, the turn was not said.
        With `sampling.thinking_budget` the thought comes first.

        Args:
            text: what the user says, `<image>` where a photo goes; without such marks the photos go first.
            images: the photos of this turn, one or several; see `mmtune.generation.calls.ImageInput`.
            sampling: how the answer is chosen; greedily by default.

        Yields:
            The pieces of the answer; together they are what `generate` gives for the same prompt.

        Raises:
            UserError: nothing is said, photos and marks differ in number, the model cannot see, or the conversation
                is longer than the model can read, or its template knows no thoughts. The turn was then not said.
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
                # a mark that the model wrote is no place for a photo
                self.turns += [turn, Turn("assistant", answer.replace(IMAGE_PLACEHOLDER, "image"))]
                self.images = all_images

    def _marked(self, text: str, images: int) -> str:
        """The text with a mark for each photo."""
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
        """The conversation as the model is shown it, with its photos; without the oldest turns if that is the rule."""
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
        """The pieces of the thought, if there is to be one, and of the answer."""
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
        """What follows a text, at most so many tokens, each piece once it can no longer change."""
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
    """Make sure that a model can answer so.

    Raises:
        UserError: it is to think, and its template knows no thoughts.
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
