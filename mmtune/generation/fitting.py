"""The prompts of a call, written so that they and what follows them fit into the model's window."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmtune.data.conversation import IMAGE_PLACEHOLDER
from mmtune.data.encoding import encode_text
from mmtune.data.rendering.templates import Rendered
from mmtune.generation.choices import ChoiceTokenizer, split_spaces
from mmtune.generation.prompts import PromptEncoder, prompt_text
from mmtune.interfaces import Prompt, SamplingParams
from mmtune.models.composed import ComposedModel
from mmtune.models.window import answer_room, checked_past_window, fitted, surely_fits


class PromptWriter:
    """Writes the prompts of a call in the model's template, those that are too long shortened if that is the rule.

    Attributes:
        prompts: those of the call; of a conversation that was shortened, what is left of it.
    """

    def __init__(
        self, model: ComposedModel, encoder: PromptEncoder, prompts: Sequence[Prompt], *, thinking: bool = False
    ) -> None:
        """
        Args:
            model: is asked.
            encoder: of the call.
            prompts: with their images.
            thinking: whether a thought comes first.

        Raises:
            UserError: see `prompt_text`, or there is no such rule.
        """
        self.prompts = list(prompts)
        self._model, self._encoder, self._thinking = model, encoder, thinking
        self._past_window = checked_past_window(model.past_window)
        self._texts = [prompt_text(model, one, number, thinking=thinking) for number, one in enumerate(prompts)]

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
        model, window = self._model, self._model.window

        def length(text: str) -> int:
            return len(self._encoder.token_ids(text if spaced else split_spaces(text)[0], self.prompts[number].images))

        text, prompt = self._texts[number], self.prompts[number]
        if window is None or surely_fits(text, len(prompt.images) * self._encoder.tokens_per_image, room, window):
            return text
        while self._past_window == "shorten" and length(text) + room > window and (shorter := without_oldest(prompt)):
            self.prompts[number] = prompt = shorter
            text = prompt_text(model, prompt, number, thinking=self._thinking)
        *before, last = prompt.turns

        def render(said: str) -> str:
            if said == last.text:
                return text
            turns = (*before, dataclasses.replace(last, text=said))
            return prompt_text(model, dataclasses.replace(prompt, turns=turns), number, thinking=self._thinking)

        return fitted(
            last.text,
            render,
            length,
            room=room,
            window=window,
            past_window=self._past_window,
            tokenizer=model.tokenizer,
            where=f"prompt {number + 1} for {model.name}",
        )


def without_oldest(prompt: Prompt) -> Prompt | None:
    """A conversation without its oldest question, answer and images; None where there is only one question."""
    system = tuple(turn for turn in prompt.turns if turn.role == "system")
    dialogue = prompt.turns[len(system) :]
    if len(dialogue) < 3:
        return None
    gone = dialogue[0].text.count(IMAGE_PLACEHOLDER)
    return dataclasses.replace(prompt, turns=(*system, *dialogue[2:]), images=prompt.images[gone:])


def too_long(
    model: ComposedModel,
    prompts: Sequence[Prompt],
    *,
    choices: Sequence[Sequence[str]] | None = None,
    params: SamplingParams | None = None,
) -> dict[int, int]:
    """Which prompts have no room for what follows them in the window, with their tokens.

    What must follow is the longest choice; of a completion its first token, or where prompts are shortened all that it
    may have, at most half of the window.

    Args:
        model: is asked.
        prompts: their images are only counted.
        choices: of each prompt, where they are scored.
        params: where completions are asked for.
    """
    window, found = model.window, dict[int, int]()
    if window is None:
        return found
    params = params or SamplingParams()
    room = params.max_tokens + params.thinking_budget if model.past_window == "shorten" else 1
    thinking = params.thinking_budget > 0
    tokens_per_image = model.tower.shape.num_tokens if model.tower else 0
    images = [len(prompt.images) for prompt in prompts]
    texts = [prompt_text(model, prompt, number, thinking=thinking) for number, prompt in enumerate(prompts)]
    for number, text in enumerate(texts):
        given = choices[number] if choices is not None else ()
        free = answer_room(window, room) if choices is None else 0
        longest = max(given, key=lambda choice: len(choice.encode()), default="")
        if surely_fits(text + longest, images[number] * tokens_per_image, free, window):
            continue
        if choices is not None:
            text, spaces = split_spaces(text)
            tokenizer = ChoiceTokenizer(model.tokenizer, text)
            free = max((len(tokenizer.ids(spaces + choice)) for choice in given if choice), default=0)
        tokens = len(encode_text(Rendered(text, ()), model.tokenizer, tokens_per_image=tokens_per_image)[0])
        if tokens + free > window:
            found[number] = tokens if choices is None else tokens + free
    return found
