"""Vision-language model that answers: text and log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch

from mmtune.generation.calls import Photos, Prompts, check_sampling, choices_of_each, stop_strings, whole_number
from mmtune.generation.fitting import too_long
from mmtune.generation.request import Request
from mmtune.models.vlm import TunableModel
from mmtune.models.window import PastWindow

BATCH_TOKENS = 16384  # whose keys and values are in memory at once: 0.8 GB for 135M parameters, 8 GB for 7B in bfloat16


class VisionLanguageModel(TunableModel):
    """Vision-language model that is loaded, saved and asked; see `ComposedModel` for what it is made of."""

    def too_long(
        self,
        prompts: Sequence[str],
        photos: Sequence[int],
        *,
        choices: Sequence[Sequence[str]] | None = None,
        response_prefix: str = "",
        thinking: bool = False,
        room: int = 1,
    ) -> dict[int, int]:
        """Which prompts have no room for what follows them in the window; see `mmtune.generation.fitting.too_long`."""
        return too_long(
            self, prompts, photos, choices=choices, response_prefix=response_prefix, thinking=thinking, room=room
        )

    @overload
    def generate(self, prompts: str, images: Photos = None, **options: Any) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompts: Sequence[str], images: Sequence[Photos] | None = None, **options: Any) -> list[str]: ...

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str],
        images: Photos | Sequence[Photos] = None,
        *,
        system: str | None = None,
        response_prefix: str = "",
        max_tokens: int = 64,
        stop: str | Sequence[str] = (),
        thinking_budget: int = 0,
        past_window: PastWindow = "refuse",
        batch_tokens: int = BATCH_TOKENS,
        **options: Any,
    ) -> str | list[str]:
        """Answer prompts, greedily unless the options ask for sampling.

        Greedy answers compute what several prompts begin with, and a photo that several show (the same object), once.

        Args:
            prompts: what the user says, `<image>` where a photo goes: one string, or a list of them.
            images: the photos of the one prompt, or of each: one, a list or None; see `mmtune.generation.calls.Photo`.
            system: a system prompt in place of the template's own.
            response_prefix: how the assistant's turn begins; not part of the answer.
            max_tokens: the most tokens an answer may have.
            stop: string or strings that end an answer; the answer includes the first.
            thinking_budget: let the model think first, at most so many tokens; 0 has it answer at once.
            past_window: what becomes of a prompt that is too long, `refuse` or `shorten`; see
                `mmtune.models.window.fitted`.
            batch_tokens: tokens in memory at once; halved when it runs out.
            **options: of transformers' `generate`, which then answers.

        Returns:
            The answer to the one string, or a list with the answer to each, as `Response`s; with thinking, see
            `think_first`.

        Raises:
            UserError: photos and `<image>` marks of a prompt differ in number, the template knows no thoughts, a prompt
                is longer than the model reads, or something given is of another kind.
        """
        asked, stops = Prompts(prompts, images), stop_strings(stop)
        whole_number(max_tokens, "max_tokens", 1)
        whole_number(thinking_budget, "thinking_budget", 0)
        check_sampling(options)
        request = Request(
            self,
            asked,
            system=system,
            response_prefix=response_prefix,
            past_window=past_window,
            batch_tokens=batch_tokens,
        )
        return asked.returned(request.generate(max_tokens, stops, thinking_budget, options))

    @overload
    def loglikelihood(  # type: ignore[overload-overlap]
        self, prompts: str, choices: Sequence[str], images: Photos = None, **options: Any
    ) -> list[float]: ...

    @overload
    def loglikelihood(
        self,
        prompts: Sequence[str],
        choices: Sequence[Sequence[str]],
        images: Sequence[Photos] | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    @torch.inference_mode()
    def loglikelihood(
        self,
        prompts: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        images: Photos | Sequence[Photos] = None,
        *,
        system: str | None = None,
        response_prefix: str = "",
        past_window: PastWindow = "refuse",
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[float] | list[list[float]]:
        """How likely each choice is as the beginning of the answer.

        Args:
            prompts: what the user says, `<image>` where a photo goes: one string, or a list of them.
            choices: what the assistant may say after the response_prefix, for the one prompt or for each.
            images: the photos of the one prompt, or of each; as `generate` takes them.
            system: a system prompt in place of the template's own.
            response_prefix: how the assistant's turn begins.
            past_window: what becomes of a prompt that is too long with its longest choice; see
                `mmtune.models.window.fitted`.
            batch_tokens: tokens in memory at once; halved when it runs out.

        Returns:
            For the one string, or in a list for each prompt, the natural logarithm of each choice's probability: the
            sum over its tokens, as `ChoiceTokenizer` gives them. Spaces at the end of the prompt are scored with the
            choice. NaN for a choice of which the tokenizer keeps nothing.

        Raises:
            UserError: photos and `<image>` marks of a prompt differ in number, a choice is empty, or a prompt is longer
                than the model reads.
        """
        asked = Prompts(prompts, images)
        request = Request(
            self,
            asked,
            system=system,
            response_prefix=response_prefix,
            past_window=past_window,
            batch_tokens=batch_tokens,
        )
        return asked.returned(request.loglikelihood(choices_of_each(choices, asked)))
