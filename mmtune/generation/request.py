"""Answers and log-likelihoods for the prompts of one call: written, kept within the window, computed and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from mmtune.common.errors import UserError
from mmtune.data.conversation import IMAGE_PLACEHOLDER, MARK_AS_TEXT
from mmtune.data.rendering.templates import THOUGHT_END
from mmtune.generation.answering import Answering
from mmtune.generation.calls import Prompts
from mmtune.generation.fitting import PromptWriter
from mmtune.generation.prompts import PromptEncoder
from mmtune.generation.thinking import think_first
from mmtune.models.composed import ComposedModel
from mmtune.models.decoding.answers import Ending, Response
from mmtune.models.decoding.prefixes import Keys
from mmtune.models.window import PastWindow, by_room

T = TypeVar("T")


class Request:
    """The prompts of one call to a model. What several begin with, and a photo that several show, is computed once."""

    def __init__(
        self,
        model: ComposedModel,
        asked: Prompts,
        *,
        system: str | None,
        response_prefix: str,
        past_window: PastWindow,
        batch_tokens: int,
    ) -> None:
        """
        Args:
            model: answers.
            asked: the prompts with their photos.
            system: a system prompt in place of the template's own.
            response_prefix: how the assistant's turn begins.
            past_window: what becomes of a prompt that is too long.
            batch_tokens: tokens in memory at once; halved when it runs out.
        """
        self._model, self._asked, self._system, self._primer = model, asked, system, response_prefix
        self._past_window, self._batch_tokens = past_window, batch_tokens
        self._encoder = PromptEncoder(model)

    def generate(
        self, max_tokens: int, stops: Sequence[str], thinking_budget: int, options: dict[str, Any]
    ) -> list[str]:
        """The answer to each prompt, or its thought and answer where it may think.

        Args:
            max_tokens: the most tokens an answer may have.
            stops: strings that end an answer.
            thinking_budget: the most tokens of a thought; 0 for none.
            options: of transformers' `generate`, which then answers.

        Raises:
            UserError: a prompt is longer than the model reads.
        """

        def answer(numbers: Sequence[int], texts: Sequence[str]) -> list[str]:
            return self._follow(numbers, texts, max_tokens, stops, options)

        def think(numbers: Sequence[int], texts: Sequence[str]) -> list[str]:
            return self._follow(numbers, texts, thinking_budget, [THOUGHT_END], options)

        writer = self._writer("" if thinking_budget else self._primer, thinking=bool(thinking_budget))
        room = max_tokens + thinking_budget
        texts = [writer.with_room(number, room) for number in range(len(self._asked.texts))]
        if not thinking_budget:
            return answer(range(len(texts)), texts)
        return think_first(texts, self._primer.replace(IMAGE_PLACEHOLDER, MARK_AS_TEXT), think=think, answer=answer)

    def loglikelihood(self, choices_of: Sequence[Sequence[str]]) -> list[list[float]]:
        """The summed natural-log probability of each prompt's choices; NaN where the tokenizer keeps nothing of one.

        Raises:
            UserError: a choice is empty, or a prompt is longer than the model reads.
        """
        writer = self._writer(self._primer, thinking=False)
        sequences, scored = [], []
        for number, given in enumerate(choices_of):
            if "" in given:
                raise UserError(f"prompt {number + 1}: a choice is empty; leave it out")
            context, said = writer.with_choices(number, given)
            prompt = self._encoder.keys(context, self._asked.photos[number])
            sequences += [np.concatenate([prompt, np.array(tokens, dtype=np.int64)]) for tokens in said]
            scored += [len(tokens) for tokens in said]
        sums = self._compute(lambda engine: engine.loglikelihoods(sequences, scored))
        values = iter([total if tokens else math.nan for total, tokens in zip(sums, scored, strict=True)])
        return [[next(values) for _ in given] for given in choices_of]

    def _writer(self, response_prefix: str, *, thinking: bool) -> PromptWriter:
        return PromptWriter(
            self._model,
            self._encoder,
            self._asked,
            self._system,
            response_prefix,
            thinking=thinking,
            past_window=self._past_window,
        )

    def _follow(
        self, numbers: Sequence[int], texts: Sequence[str], limit: int, stops: Sequence[str], options: dict[str, Any]
    ) -> list[str]:
        """What follows each text, at most `limit` tokens, and no more than the window has room for."""
        model, photos = self._model, self._asked.photos
        encoded = [self._encoder.keys(text, photos[i]) for i, text in zip(numbers, texts, strict=True)]
        answers: list[str] = [Response("", "window")] * len(encoded)
        for room, places in by_room(map(len, encoded), limit, model.window).items():
            if room > 0:
                end = Ending(room, stops, model.end_ids(), model.end_texts(), "length" if room == limit else "window")
                for place, said in zip(places, self._said([encoded[i] for i in places], end, options), strict=True):
                    answers[place] = said
        return answers

    def _said(self, prompts: Sequence[Keys], end: Ending, options: dict[str, Any]) -> list[str]:
        return self._compute(lambda engine: engine.generate(prompts, end, options))

    def _compute(self, run: Callable[[Answering], list[T]]) -> list[T]:
        """Run the model's engine, and count what it took."""
        answering = Answering(self._model, self._encoder, self._batch_tokens)
        try:
            return run(answering)
        finally:
            self._model.count(answering.counts)
