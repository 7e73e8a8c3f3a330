"""Vision-language model that answers: completions and log-likelihoods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, overload

import torch

from mmtune.common.attributes import set_attributes
from mmtune.common.errors import UserError, did_you_mean
from mmtune.generation.calls import ImageInputs, Prompts, choices_of_each, stop_strings
from mmtune.generation.fitting import too_long
from mmtune.generation.request import Request
from mmtune.interfaces import Capability, Completion, Prompt, SamplingParams
from mmtune.models.vlm import TunableModel

_SETTINGS = ("batch_tokens", "past_window")
_OPTIONS = [field.name for field in dataclasses.fields(SamplingParams)]


class VisionLanguageModel(TunableModel):
    """Vision-language model with loading, saving and answers; see `ComposedModel` for its parts."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities beyond one greedy answer to a text."""
        found: set[Capability] = {"loglikelihood", "sampling", "window", "batching"}
        if self.tower is not None:
            found.add("images")
        if self.thinking != "never":
            found.add("thinking")
        if self.thinking == "always":
            found.add("always_thinks")
        return frozenset(found)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> list[list[Completion]]:
        """Generate completions of prompts.

        A common prefix of several prompts, the prompt of several completions, and an image of several prompts (the same
        object) are computed once. A model that computes sequences one by one (docs/models.md) shares the image only.

        Args:
            prompts: conversations; their images are Pillow's, paths, bytes or arrays
                (`mmtune.generation.calls.ImageInput`).
            params: sampling options; one greedy completion of each prompt by default.

        Returns:
            The `params.n` completions of each prompt.

        Raises:
            UserError: images and `<image>` marks of a prompt differ in number, the template has no thoughts, a prompt
                is longer than the model reads, or a value has another type.
        """
        if isinstance(prompts, str | Prompt) or not all(isinstance(one, Prompt) for one in prompts):
            raise UserError("generate takes a list of mmtune.Prompt; answer takes strings")
        return Request(self, Prompts(prompts).prompts).complete(params or SamplingParams()) if prompts else []

    @overload
    def answer(self, prompts: str, images: ImageInputs = None, **options: Any) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def answer(
        self, prompts: Sequence[str], images: Sequence[ImageInputs] | None = None, **options: Any
    ) -> list[str]: ...

    @torch.inference_mode()
    def answer(
        self,
        prompts: str | Sequence[str],
        images: ImageInputs | Sequence[ImageInputs] = None,
        *,
        system: str | None = None,
        response_prefix: str = "",
        stop: str | Sequence[str] = (),
        **options: Any,
    ) -> str | list[str]:
        """Answer texts of a user: `generate` for strings, one completion each.

        Args:
            prompts: text of the user, with `<image>` in place of each image: one string, or a list of them.
            images: the images of the one prompt, or of each: one, a list or None; see
                `mmtune.generation.calls.ImageInput`.
            system: a system prompt in place of the template's own.
            response_prefix: beginning of the assistant's turn; not part of the answer.
            stop: string or strings that end an answer; the answer includes the first.
            **options: the other fields of `SamplingParams`, and `batch_tokens` or `past_window` for this call.

        Returns:
            The answer to the one string, or a list with the answer to each; with thinking, the thought before it.

        Raises:
            UserError: see `generate`.
        """
        settings = {name: options.pop(name) for name in _SETTINGS if name in options}
        asked = Prompts(prompts, images, system=system, response_prefix=response_prefix)
        for name in options:
            if name not in _OPTIONS:
                raise UserError(f"{name}: answer has no such option; {did_you_mean(name, [*_OPTIONS, *_SETTINGS])}")
        params = SamplingParams(stop=tuple(stop_strings(stop)), **options)
        if params.n != 1:
            raise UserError(f"n {params.n}: answer gives one to each prompt; generate gives several")
        with _set(self, settings):
            completions = Request(self, asked.prompts).complete(params)
        return asked.returned([one.response for (one,) in completions])

    @overload
    def loglikelihood(  # type: ignore[overload-overlap]
        self, prompts: str | Prompt, choices: Sequence[str], images: ImageInputs = None, **options: Any
    ) -> list[float]: ...

    @overload
    def loglikelihood(
        self,
        prompts: Sequence[str] | Sequence[Prompt],
        choices: Sequence[Sequence[str]],
        images: Sequence[ImageInputs] | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    @torch.inference_mode()
    def loglikelihood(
        self,
        prompts: str | Prompt | Sequence[str] | Sequence[Prompt],
        choices: Sequence[str] | Sequence[Sequence[str]],
        images: ImageInputs | Sequence[ImageInputs] = None,
        *,
        system: str | None = None,
        response_prefix: str = "",
        **options: Any,
    ) -> list[float] | list[list[float]]:
        """Compute the log-probability of each choice as the beginning of the answer.

        Args:
            prompts: one `Prompt` or a list of them; or text of the user, one string or a list. `images`, `system` and
                `response_prefix` are for strings.
            choices: texts that may follow the response prefix, for the one prompt or for each.
            images: the images of the one string, or of each; as `answer` takes them.
            system: a system prompt in place of the template's own.
            response_prefix: beginning of the assistant's turn.
            **options: `batch_tokens` or `past_window` for this call.

        Returns:
            For the one prompt, or in a list for each, the natural logarithm of each choice's probability: the sum over
            its tokens, as `ChoiceTokenizer` gives them. Spaces at the end of the prompt are scored with the choice. NaN
            for a choice that the tokenizer drops completely.

        Raises:
            UserError: images and `<image>` marks of a prompt differ in number, a choice is empty, or a prompt is longer
                than the model reads.
        """
        asked = Prompts(prompts, images, system=system, response_prefix=response_prefix)
        with _set(self, options):
            return asked.returned(Request(self, asked.prompts).loglikelihood(choices_of_each(choices, asked)))

    def too_long(
        self,
        prompts: Sequence[Prompt],
        *,
        choices: Sequence[Sequence[str]] | None = None,
        params: SamplingParams | None = None,
    ) -> dict[int, int]:
        """Return the prompts that do not fit into the window; see `mmtune.generation.fitting.too_long`."""
        return too_long(self, prompts, choices=choices, params=params)


def _set(model: VisionLanguageModel, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Change settings of a model for one call."""
    for name in settings:
        if name not in _SETTINGS:
            raise UserError(f"{name}: there is no such option; {did_you_mean(name, _SETTINGS)}")
    return set_attributes(model, settings)
