"""The prompts of a call, written so that they and what follows them fit into the model's window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtune.data.encoding import encode_text
from mmtune.data.rendering.templates import Rendered
from mmtune.generation.calls import Prompts
from mmtune.generation.choices import ChoiceTokenizer, split_spaces
from mmtune.generation.prompts import PromptEncoder, prompt_texts
from mmtune.models.composed import ComposedModel
from mmtune.models.window import PastWindow, answer_room, checked_past_window, fitted, surely_fits


class PromptWriter:
    """Writes the prompts of a call in the model's template, those that are too long shortened if that is the rule."""

    def __init__(
        self,
        model: ComposedModel,
        encoder: PromptEncoder,
        asked: Prompts,
        system: str | None,
        response_prefix: str,
        *,
        thinking: bool = False,
        past_window: PastWindow = "refuse",
    ) -> None:
        """
        Args:
            model: is asked.
            encoder: of the call.
            asked: the prompts with their photos.
            system: a system prompt in place of the template's own.
            response_prefix: how the assistant's turn begins.
            thinking: whether a thought comes first.
            past_window: what becomes of a prompt that is too long.

        Raises:
            UserError: see `prompt_texts`, or there is no such rule.
        """
        self._model, self._encoder, self._asked = model, encoder, asked
        self._system, self._primer, self._thinking = system, response_prefix, thinking
        self._past_window = checked_past_window(past_window)
        self._texts = prompt_texts(model, asked.texts, asked.photos, system, response_prefix, thinking=thinking)

    def with_room(self, number: int, tokens: int) -> str:
        """A prompt behind which there is room for an answer of so many tokens; where longer ones are refused, for one.

        Raises:
            UserError: the prompt is too long.
        """
        return self._fitted(number, 1 if self._past_window == "refuse" else answer_room(self._model.window, tokens))

    def with_choices(self, number: int, choices: Sequence[str]) -> tuple[str, list[list[int]]]:
        """A prompt without the spaces at its end, and the tokens of what may follow it.

        Raises:
            UserError: the prompt is too long for the longest choice, or the embedding lacks a token of a choice.
        """
        context, spaces = split_spaces(self._texts[number])
        tokenizer = ChoiceTokenizer(self._model.tokenizer, context)
        said = [tokenizer.ids(spaces + choice) for choice in choices]
        for choice, ids in zip(choices, said, strict=True):
            self._encoder.check(np.asarray(ids, dtype=np.int64), choice)
        return split_spaces(self._fitted(number, max(map(len, said), default=0), spaced=False))[0], said

    def _fitted(self, number: int, room: int, *, spaced: bool = True) -> str:
        """A prompt behind which so many tokens fit; unless `spaced`, spaces at its end are not counted."""
        model, photos, window = self._model, self._asked.photos[number], self._model.window
        text = self._texts[number]
        if window is None or surely_fits(text, len(photos) * self._encoder.tokens_per_photo, room, window):
            return text

        def render(prompt: str) -> str:
            if prompt == self._asked.texts[number]:
                return text
            return prompt_texts(model, [prompt], [photos], self._system, self._primer, thinking=self._thinking)[0]

        def length(text: str) -> int:
            return len(self._encoder.keys(text if spaced else split_spaces(text)[0], photos))

        return fitted(
            self._asked.texts[number],
            render,
            length,
            room=room,
            window=window,
            past_window=self._past_window,
            tokenizer=model.tokenizer,
            where=f"prompt {number + 1} for {model.name}",
        )


def too_long(
    model: ComposedModel,
    prompts: Sequence[str],
    photos: Sequence[int],
    *,
    choices: Sequence[Sequence[str]] | None = None,
    response_prefix: str = "",
    thinking: bool = False,
    room: int = 1,
) -> dict[int, int]:
    """Which prompts have no room for what follows them; see `VisionLanguageModel.too_long`."""
    window, found = model.window, dict[int, int]()
    if window is None:
        return found
    tokens_per_photo = model.tower.shape.num_tokens if model.tower else 0
    texts = prompt_texts(model, prompts, [[None] * count for count in photos], None, response_prefix, thinking=thinking)
    for number, text in enumerate(texts):
        given = choices[number] if choices is not None else ()
        free = answer_room(window, room) if choices is None else 0
        longest = max(given, key=lambda choice: len(choice.encode()), default="")
        if surely_fits(text + longest, photos[number] * tokens_per_photo, free, window):
            continue
        if choices is not None:
            text, spaces = split_spaces(text)
            tokenizer = ChoiceTokenizer(model.tokenizer, text)
            free = max((len(tokenizer.ids(spaces + choice)) for choice in given if choice), default=0)
        tokens = len(encode_text(Rendered(text, ()), model.tokenizer, tokens_per_photo=tokens_per_photo)[0])
        if tokens + free > window:
            found[number] = tokens if choices is None else tokens + free
    return found
