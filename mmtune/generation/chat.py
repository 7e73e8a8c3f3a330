"""A conversation with a model: it answers while it thinks, and what was said is not computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from mmtune.common.errors import UserError
from mmtune.data.conversation import IMAGE_PLACEHOLDER, is_unicode
from mmtune.data.rendering.templates import THOUGHT_END
from mmtune.generation.calls import Photos, check_sampling, one_text, photos_of_turn, stop_strings
from mmtune.generation.prompts import PromptEncoder
from mmtune.generation.token_stream import spoken
from mmtune.interfaces import FinishReason, Turn
from mmtune.models.attention.packed import use_attention
from mmtune.models.decoding.answers import Answer, Ending, Response
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.prefixes import Keys, common_prefix
from mmtune.models.window import PastWindow, answer_room, by_room, checked_past_window

if TYPE_CHECKING:
    from mmtune.generation.generator import VisionLanguageModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is chosen.

    Attributes:
        temperature: 0 takes the likeliest token each time; above, tokens are drawn, the more evenly the higher.
        top_p: draw only from the likeliest tokens that together have this probability.
        max_tokens: the most tokens an answer may have.
        seed: the same one draws the same answer; None draws another each time.
        thinking_budget: let the model think before it answers, at most so many tokens; 0 has it answer at once.
        past_window: what becomes of a conversation longer than the model reads: `refuse` the turn, or `shorten` it by
            the oldest questions, with their answers and photos.

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    thinking_budget: int = 0
    past_window: PastWindow = "refuse"

    def __post_init__(self) -> None:
        checked_past_window(self.past_window)
        check_sampling({"temperature": self.temperature, "top_p": self.top_p})
        if self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens}: give at least 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"seed {self.seed}: give a number from 0 to 2^63 - 1")
        if self.thinking_budget < 0:
            raise UserError(f"thinking_budget {self.thinking_budget}: give a number from 0 (answer at once)")

    def chooser(self) -> Callable[[torch.Tensor], int]:
        """Gives a token for the logits [1, vocabulary]; those drawn are what transformers' `generate` draws."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax(-1))
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        narrow = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_p < 1:
            narrow.append(TopPLogitsWarper(float(self.top_p)))
        unused = torch.zeros(1, 0, dtype=torch.long)  # what was said before, which these do not look at

        def choose(logits: torch.Tensor) -> int:
            return int(torch.multinomial(narrow(unused, logits.float().cpu()).softmax(-1), 1, generator=generator))

        return choose


GREEDY = Sampling()


class Chat:
    """A conversation of several turns, about photos or not.

    Each turn is rendered with all before it, as in training. Keys and values of the tokens that the text before began
    with too are kept, so that a turn costs its own tokens; where the template writes earlier turns otherwise than they
    were said, or the tokenizer cuts an answer otherwise than the model said it, what follows that place is computed
    anew, as is all of it by a model that is computed one by one. A photo goes through the tower once.

    Attributes:
        model: answers.
        turns: what was said, without the system prompt.
        photos: those of all turns, in order.
        counts: tokens computed, reused and generated.
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
        self.photos: list[Image.Image] = []
        self.counts = Counts()
        self.forgotten = 0
        self.finish_reason: FinishReason | None = None
        self._encoder = PromptEncoder(self.model)
        self._cache = DynamicCache()
        self._known: Keys = np.zeros(0, dtype=np.int64)  # whose keys and values the cache holds

    def say(
        self,
        text: str,
        images: Photos = (),
        *,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
    ) -> Generator[str, None, None]:
        """Say something, and hear the answer piece by piece.

        An answer that is not heard to its end counts as far as it was heard; if that is nothing, the turn was not said.
        With `sampling.thinking_budget` the thought comes first. One that is longer is broken off with `</think>`.

        Args:
            text: what the user says, `<image>` where a photo goes; without such marks the photos go first.
            images: the photos of this turn, one or several; see `mmtune.generation.calls.Photo`.
            sampling: how the answer is chosen.
            stop: string or strings that end an answer; the answer includes the first.

        Yields:
            The pieces of the answer; together they are what `generate` gives for the same prompt (of a thought that
            was broken off, `generate` gives no answer).

        Raises:
            UserError: nothing is said, photos and marks differ in number, the model cannot see, or the conversation
                is longer than the model can read, or its template knows no thoughts. The turn was then not said.
        """
        shown, stops = photos_of_turn(images), stop_strings(stop)
        turn = Turn("user", self._marked(text, len(shown)))
        photos = [*self.photos, *shown]
        thinking, self.finish_reason = sampling.thinking_budget > 0, None
        prompt, seen = self._prompt(turn, photos, sampling)
        choose, answer, over = sampling.chooser(), "", False
        try:
            if thinking:
                for piece in self._thought(prompt, seen, sampling.thinking_budget, choose):
                    answer += piece
                    yield piece
                prompt += answer.replace(IMAGE_PLACEHOLDER, "image")
            for piece in self._answer(prompt, seen, sampling.max_tokens, stops, choose):
                answer += piece
                yield piece
            over = True
        finally:
            if answer or over:
                # a mark that the model wrote is no place for a photo
                self.turns += [turn, Turn("assistant", answer.replace(IMAGE_PLACEHOLDER, "image"))]
                self.photos = photos

    def _marked(self, text: str, photos: int) -> str:
        """The text with a mark for each photo."""
        text = _checked(text)
        marks = text.count(IMAGE_PLACEHOLDER)
        if not marks:
            text, marks = f"{IMAGE_PLACEHOLDER}\n" * photos + text, photos
        if not text.strip():
            raise UserError("nothing was said; write something, or give a photo")
        if marks != photos:
            raise UserError(f"{marks} {IMAGE_PLACEHOLDER} mark(s) but {photos} photo(s); every mark needs its photo")
        if photos and self.model.tower is None:
            raise UserError(f"{self.model.name} has no vision tower, so it cannot see photos")
        return text

    def _prompt(
        self, turn: Turn, photos: Sequence[Image.Image], sampling: Sampling
    ) -> tuple[str, Sequence[Image.Image]]:
        """The conversation as the model is shown it, with its photos; without the oldest turns if that is the rule."""
        window, room = self.model.window, sampling.max_tokens + sampling.thinking_budget
        forgotten = self.forgotten
        while True:
            turns = self.turns[forgotten:]
            prompt = self.model.template.prompt([*self._system, *turns, turn], thinking=sampling.thinking_budget > 0)
            seen = photos[sum(said.text.count(IMAGE_PLACEHOLDER) for said in self.turns[:forgotten]) :]
            if window is None:
                break
            tokens = len(self._encoder.keys(prompt, seen))
            if sampling.past_window == "shorten" and turns and tokens + answer_room(window, room) > window:
                forgotten += 2  # a question and its answer
                continue
            if tokens >= window:
                said = "what is said is" if not turns else "the conversation is"
                advice = "say less" if not turns else "start a new one, or let it forget its oldest turns (past_window)"
                raise UserError(f"{said} {tokens:,} tokens long, and {self.model.name} reads {window:,}; {advice}")
            break
        self.forgotten = forgotten
        return prompt, seen

    def _thought(
        self, prompt: str, photos: Sequence[Image.Image], most: int, choose: Callable[[torch.Tensor], int]
    ) -> Iterator[str]:
        """The thought and the empty line behind it; one that does not end by itself is ended."""
        thought = ""
        for piece in self._answer(prompt, photos, most, [THOUGHT_END], choose):
            thought += piece
            yield piece
        yield "\n\n" if thought.endswith(THOUGHT_END) else f"\n{THOUGHT_END}\n\n"

    def _answer(
        self,
        prompt: str,
        photos: Sequence[Image.Image],
        most: int,
        stop: Sequence[str],
        choose: Callable[[torch.Tensor], int],
    ) -> Iterator[str]:
        """What follows a text, at most so many tokens, each piece once it can no longer change."""
        keys = self._encoder.keys(prompt, photos)
        (limit,) = by_room([len(keys)], most, self.model.window)
        if limit < 1:  # a thought has taken all the room
            self.finish_reason = "window"
            return
        reason: FinishReason = "length" if limit == most else "window"
        ending = Ending(limit, stop, self.model.end_ids(), self.model.end_texts(), reason)
        answer = Answer(ending, self.model.tokenizer)
        said = ""
        follow = self._following if self.model.fitness.packed else self._following_alone
        with contextlib.closing(follow(keys, ending.max_tokens, choose)) as tokens:
            for token in tokens:
                self.counts.generated += 1
                answer.add(token)
                ready = answer.text if answer.over else ending.settled(answer.text)
                if len(ready) > len(said) and ready.startswith(said):
                    yield ready[len(said) :]
                    said = ready
                if isinstance(answer.text, Response):
                    self.finish_reason = answer.text.finish_reason
                    return

    def _following(self, keys: Keys, most: int, choose: Callable[[torch.Tensor], int]) -> Generator[int, None, None]:
        """The tokens that follow, what was computed before not computed again."""
        known = min(common_prefix(self._known, keys), len(keys) - 1)
        self._known = self._known[:known]
        for layer in self._cache.layers:
            if (surplus := layer.get_seq_length() - known) > 0:
                layer.crop(-surplus)
        logits = self._read(keys[known:])
        self.counts.computed += len(keys) - known
        self.counts.reused += known
        for _ in range(most):
            token = choose(logits)
            yield token
            logits = self._read(np.array([token]))

    def _following_alone(
        self, keys: Keys, most: int, choose: Callable[[torch.Tensor], int]
    ) -> Generator[int, None, None]:
        """The same by the model's own code, which computes a conversation anew at every turn."""
        model = self.model
        with torch.inference_mode():
            inputs = model.alone.prompt(keys, self._encoder.embed)
        self.counts.computed += len(keys)
        yield from spoken(model.base_language, inputs, most, choose)

    @torch.inference_mode()
    def _read(self, keys: Keys) -> torch.Tensor:
        """Compute tokens that follow those known; the logits [1, vocabulary] of what follows them."""
        language = self.model.base_language
        embeddings = self._encoder.embed(keys)
        places = torch.arange(len(self._known), len(self._known) + len(keys), device=embeddings.device)
        with use_attention(language, self.model.own_attention):
            hidden = self.model.body(
                inputs_embeds=embeddings[None],
                position_ids=places[None],
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        # only now: where it was interrupted, the next turn cuts off what some layers have and others have not
        self._known = np.concatenate([self._known, keys])
        return self.model.output_layer(hidden[:, -1])


def check_thinking(model: VisionLanguageModel, sampling: Sampling) -> None:
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
