"""Vision-language model: loading, saving, answers and log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from mmtune.errors import UserError
from mmtune.models import saving
from mmtune.models.calls import Photos, Prompts, check_sampling, choices_of_each, stop_strings, whole_number
from mmtune.models.composed import ComposedModel
from mmtune.models.fingerprint import fingerprint
from mmtune.models.fitting import too_long
from mmtune.models.request import Request
from mmtune.models.window import PastWindow

Stage = Literal["align", "tune"]

BATCH_TOKENS = 16384  # whose keys and values are in memory at once: 0.8 GB for 135M parameters, 8 GB for 7B in bfloat16


class VisionLanguageModel(ComposedModel):
    """Vision-language model that is loaded, saved and asked; see `ComposedModel` for what it is made of."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        language: str | None = None,
        template: str | None = None,
        template_date: str | None = None,
    ) -> VisionLanguageModel:
        """Load a run, a saved or exported model, a LLaVA of transformers or of the released code, or a language model.

        `language` replaces the one that adapters or a projector name, `template` the one that is recorded, and
        `template_date` (2026-01-31) the date that is recorded or that the template would ask the clock for.

        Raises:
            UserError: there is no model there, or a part of it is missing.
        """
        model = saving.load(
            cls, str(path), dtype=dtype, language=language, template=template, template_date=template_date
        )
        model.name = str(path)
        return model.to(device).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Save what was trained and how to find the rest; nothing half-written is left behind."""
        saving.save(self, Path(path))

    def set_stage(self, stage: Stage) -> None:
        """Say what is trained: `align` the projector; `tune` the language model (its adapters, if any) and projector.

        Raises:
            UserError: the stage has nothing to train.
        """
        self.requires_grad_(False)
        if stage == "align" and self.projector is None:
            raise UserError("--model.stage align: a text-only model has no projector to align; give --model.vision")
        if self.projector is not None:
            self.projector.requires_grad_(True)
        if stage == "tune":
            for name, parameter in self.language.named_parameters():
                if self.spec.lora is None or "lora_" in name:
                    parameter.requires_grad_(True)
            self.spec.language_trained = self.spec.lora is None

    def merge_adapters(self) -> None:
        """Fold the adapters into the language model's weights, in place; the answers stay the same.

        Raises:
            UserError: the weights are quantised, and the adapters would be rounded away.
        """
        if self.spec.lora is not None:
            if self.spec.quantise is not None:
                raise UserError(
                    f"{self.spec.quantise}: adapters are not folded into quantised weights; load the model with "
                    "quantise null in mmtune.json to merge them"
                )
            self.language = self.language.merge_and_unload()
            self.spec.lora, self.spec.language_trained = None, True

    @property
    def fingerprint(self) -> str:
        """Changes with anything that can change an answer; see `mmtune.models.fingerprint`."""
        return fingerprint(self)

    def too_long(
        self,
        prompts: Sequence[str],
        photos: Sequence[int],
        *,
        choices: Sequence[Sequence[str]] | None = None,
        primer: str = "",
        thinking: bool = False,
        room: int = 1,
    ) -> dict[int, int]:
        """Which prompts have no room for what follows them in the window; see `mmtune.models.fitting.too_long`."""
        return too_long(self, prompts, photos, choices=choices, primer=primer, thinking=thinking, room=room)

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
        primer: str = "",
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        thinking_tokens: int = 0,
        past_window: PastWindow = "refuse",
        batch_tokens: int = BATCH_TOKENS,
        **options: Any,
    ) -> str | list[str]:
        """Answer prompts, greedily unless the options ask for sampling.

        Greedy answers compute what several prompts begin with, and a photo that several show (the same object), once.

        Args:
            prompts: what the user says, `<image>` where a photo goes: one string, or a list of them.
            images: the photos of the one prompt, or of each: one, a list or None; see `mmtune.models.calls.Photo`.
            system: a system prompt in place of the template's own.
            primer: how the assistant's turn begins; not part of the answer.
            max_new_tokens: the most tokens an answer may have.
            stop: string or strings that end an answer; the answer includes the first.
            thinking_tokens: let the model think first, at most so many tokens; 0 has it answer at once.
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
        whole_number(max_new_tokens, "max_new_tokens", 1)
        whole_number(thinking_tokens, "thinking_tokens", 0)
        check_sampling(options)
        request = Request(self, asked, system=system, primer=primer, past_window=past_window, batch_tokens=batch_tokens)
        return asked.returned(request.generate(max_new_tokens, stops, thinking_tokens, options))

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
        primer: str = "",
        past_window: PastWindow = "refuse",
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[float] | list[list[float]]:
        """How likely each choice is as the beginning of the answer.

        Args:
            prompts: what the user says, `<image>` where a photo goes: one string, or a list of them.
            choices: what the assistant may say after the primer, for the one prompt or for each.
            images: the photos of the one prompt, or of each; as `generate` takes them.
            system: a system prompt in place of the template's own.
            primer: how the assistant's turn begins.
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
        request = Request(self, asked, system=system, primer=primer, past_window=past_window, batch_tokens=batch_tokens)
        return asked.returned(request.loglikelihood(choices_of_each(choices, asked)))
