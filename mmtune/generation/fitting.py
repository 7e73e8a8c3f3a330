"""Rendering of a call's prompts so that each fits into the model's window with the tokens that follow it."""

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
    """Renderer of a call's prompts in the model's template; with the rule `shorten`, long prompts are shortened.

    Attributes:
        prompts: prompts of the call; of a conversation that was shortened, the remaining turns.
    """

    def __init__(
        self, model: ComposedModel, encoder: PromptEncoder, prompts: Sequence[Prompt], *, thinking: bool = False
    ) -> None:
        """
        Args:
            model: model that receives the prompts.
            encoder: encoder of the call.
            prompts: prompts with their images.
            thinking: whether a thought comes first.

        Raises:
            UserError: see `prompt_text`; or `model.past_window` is no known rule.
        """
        self.prompts = list(prompts)
        self._model, self._encoder, self._thinking = model, encoder, thinking
        self._past_window = checked_past_window(model.past_window)
        self._texts = [prompt_text(model, one, number, thinking=thinking) for number, one in enumerate(prompts)]

    def with_room(self, number: int, tokens: int) -> str:
        """Return a prompt that leaves room for an answer of `tokens` tokens, or for one token with the rule `refuse`.

        With the rule `shorten`, at most half of the window is kept free.

        Raises:
            UserError: the prompt is too long.
        """
        return self._fitted(number, 1 if self._past_window == "refuse" else answer_room(self._model.window, tokens))

    def with_choices(self, number: int, choices: Sequence[str]) -> tuple[str, list[list[int]]]:
        """Return a prompt without the spaces at its end, and the tokens of the choices that may follow it.

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
        """Return a prompt that leaves `room` tokens free; unless `spaced`, spaces at its end are not counted."""
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
    """Return a conversation without its oldest question, answer and images; None if there is only one question."""
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
    """Return the numbers of the prompts that do not fit into the window with the tokens that follow, and their lengths.

    The tokens that follow are those of the longest choice, which the length includes. For completions, they are one
    token; with the rule `shorten`, they are all tokens of the completion, at most half of the window.

    Args:
        model: model that receives the prompts.
        prompts: their images are only counted.
        choices: choices of each prompt, if they are scored.
        params: sampling options, if completions are generated.
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
