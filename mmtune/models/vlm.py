"""VisionLanguageModel: vision tower, projector and language model put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import IMAGE_TOKEN, ModelInputs
from mmtune.data.templates import Thinking, get_template
from mmtune.errors import UserError
from mmtune.models import saving
from mmtune.models.adapters import add_adapters
from mmtune.models.alone import Alone
from mmtune.models.attention import PACKED, packed_hidden
from mmtune.models.calls import Photos, Prompts, check_sampling, choices_of_each, stop_strings, whole_number
from mmtune.models.fingerprint import fingerprint
from mmtune.models.fitness import fitness_of
from mmtune.models.fitting import too_long
from mmtune.models.head import Head
from mmtune.models.inference import Counts
from mmtune.models.inputs import model_inputs
from mmtune.models.language import empty_language, load_config, load_language, load_tokenizer
from mmtune.models.options import ModelSpec
from mmtune.models.projector import build_projector, spread_of_words
from mmtune.models.request import Request
from mmtune.models.stopping import end_ids, end_texts
from mmtune.models.vision import VisionTower, build_tower
from mmtune.models.window import PastWindow, window_of

Stage = Literal["align", "tune"]

BATCH_TOKENS = 16384  # whose keys and values are in memory at once: 0.8 GB for 135M parameters, 8 GB for 7B in bfloat16


class VisionLanguageModel(nn.Module):
    """A language model that sees photos through a frozen tower and a projector.

    Attributes:
        spec: what it is made of.
        language: the causal language model, inside peft's wrapper where there are adapters.
        tower: the vision tower, or None in a text-only model.
        projector: features to word embeddings, or None.
        name: what it is called in tables.
        share_prefixes: compute what several prompts of a call begin with once.
    """

    def __init__(
        self,
        spec: ModelSpec,
        language: Any,
        tokenizer: Any,
        tower: VisionTower | None,
        projector: nn.Module | None,
    ) -> None:
        super().__init__()
        self.spec, self.tokenizer = spec, tokenizer
        self.language, self.tower, self.projector = language, tower, projector
        self.fitness = fitness_of(language.config, spec.language, sees=tower is not None)
        self.own_attention: str = language.config._attn_implementation
        if self.fitness.packed:
            language.config._attn_implementation = PACKED
        self.template = get_template(spec.template, tokenizer, spec.template_date)
        self.name = spec.language
        self.share_prefixes = True
        self._counts = {"prompt_tokens": 0, "generated_tokens": 0, "reused_tokens": 0}

    # ---------------------------------------------------------------- building

    @classmethod
    def assemble(
        cls,
        spec: ModelSpec,
        *,
        dtype: torch.dtype = torch.float32,
        meta: bool = False,
        tokenizer: Any = None,
    ) -> VisionLanguageModel:
        """Put a model together from its parts, the projector and the adapters with first weights.

        The weights that are trained stay float32; with `meta` there are none, to count and to plan.

        Raises:
            UserError: a part is unknown or its weights are not there.
        """
        tokenizer = tokenizer or load_tokenizer(spec.language)
        # the cheap parts first, so that a mistake in them shows before gigabytes are read
        fitness_of(load_config(spec.language), spec.language, sees=spec.vision is not None)
        tower = build_tower(spec.vision, meta=meta) if spec.vision else None
        language = empty_language(spec.language, dtype=dtype) if meta else None
        if language is None:
            language = load_language(spec.language, dtype=dtype, quantise=spec.quantise)
        words, projector = language.get_input_embeddings(), None
        if tower is not None:
            scale, hidden = 1.0 if meta else spread_of_words(words), words.weight.shape[1]
            with torch.device("meta" if meta else "cpu"):
                projector = build_projector(spec.projector, tower.shape.width, hidden, scale=scale, seed=spec.seed)
        model = cls(spec, language, tokenizer, tower, projector)
        model.requires_grad_(False)
        if spec.lora:
            model.add_adapters()
        return model

    def add_adapters(self) -> None:
        """Put the spec's adapters on the language model, with first weights from the spec's seed."""
        assert self.spec.lora is not None
        with torch.random.fork_rng():
            torch.manual_seed(self.spec.seed)
            self.language = add_adapters(self.language, self.spec.lora)

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

    # ---------------------------------------------------------------- what it is

    def inputs(self) -> ModelInputs:
        """What the data must know to prepare batches for this model."""
        return model_inputs(self.spec, self.tokenizer)

    @property
    def base_language(self) -> Any:
        """The transformers model, out of peft's wrapper (its layers keep their adapters)."""
        return self.language.get_base_model() if self.spec.lora else self.language

    @property
    def body(self) -> nn.Module:
        """Of the language model, what gives hidden states."""
        body: nn.Module = self.base_language.get_submodule(self.fitness.body)
        return body

    @property
    def output_layer(self) -> Head:
        """Hidden states [rows, hidden] to logits [rows, vocabulary]."""
        return Head(self.base_language, self.fitness.body, plain=self.fitness.plain_head)

    @property
    def alone(self) -> Alone:
        """Gives the hidden states of one sequence at a time."""
        return Alone(self.base_language, self.fitness.body, by_embeddings=self.fitness.by_embeddings)

    def fix_date(self, date: str) -> None:
        """Have its template write this date, where it would ask the clock or was told another."""
        self.spec.template_date = date
        self.template = get_template(self.spec.template, self.tokenizer, date)

    @property
    def thinking(self) -> Thinking:
        """Whether its template lets it think before it answers, or always does."""
        return self.template.thinking

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.base_language.get_input_embeddings().weight.device
        return device

    @property
    def window(self) -> int | None:
        """The most tokens that it reads at once, its answer included; None where there is no limit."""
        return window_of(self.base_language.config)

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

    @property
    def usage(self) -> dict[str, int]:
        """Running counts: prompt_tokens, generated_tokens, reused_tokens, tower_passes."""
        return {**self._counts, "tower_passes": self.tower.photos_encoded if self.tower else 0}

    @property
    def fingerprint(self) -> str:
        """Changes with anything that can change an answer; see `mmtune.models.fingerprint`."""
        return fingerprint(self)

    # ---------------------------------------------------------------- computing

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states [tokens, hidden] of a pack. The tower runs only if the pack has photos to encode.

        Raises:
            ValueError: photos and placeholders differ in number.
        """
        embeddings, lengths = self.embed(batch), batch.document_lengths
        if self.fitness.packed:
            return packed_hidden(self.body, embeddings, batch.document_ids, batch.position_ids, lengths)
        return self.alone.documents(batch.input_ids, embeddings, lengths)

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Word embeddings [tokens, hidden], what the projector makes of photos in the places marked IMAGE_TOKEN.

        Raises:
            ValueError: photos and placeholders differ in number.
        """
        photo_positions = batch.input_ids == IMAGE_TOKEN
        words: torch.Tensor = self.base_language.get_input_embeddings()(batch.input_ids.masked_fill(photo_positions, 0))
        seen, marked = self._seen(batch), int(photo_positions.sum())
        if marked != (0 if seen is None else len(seen)):
            found = "no photos" if seen is None else f"{len(seen)} photo features"
            raise ValueError(f"{', '.join(batch.where)}: {marked} photo positions for {found}")
        return words if seen is None else words.masked_scatter(photo_positions[:, None], seen.to(words.dtype))

    def _seen(self, batch: PackedBatch) -> torch.Tensor | None:
        """The photos of a pack as the language model takes them: [positions, hidden]."""
        if batch.pixels is None and batch.features is None:
            return None
        if self.tower is None or self.projector is None:
            raise ValueError(f"{', '.join(batch.where)}: photos for a model without a vision tower")
        features = self.tower(batch.pixels) if batch.features is None else self.tower.standardised(batch.features)
        projected: torch.Tensor = self.projector(features.to(next(self.projector.parameters()).dtype))
        return projected.flatten(0, 1)

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

    def count(self, counts: Counts) -> None:
        """Add what a call computed to `usage`."""
        self._counts["prompt_tokens"] += counts.computed
        self._counts["reused_tokens"] += counts.reused
        self._counts["generated_tokens"] += counts.generated

    def end_ids(self) -> list[int]:
        """The tokens that end an answer: see `mmtune.models.stopping`."""
        return end_ids(self.template, self.tokenizer, self.base_language)

    def end_texts(self) -> tuple[str, ...]:
        """The markers that end a turn and are text to the tokenizer, not one token."""
        return end_texts(self.template, self.tokenizer)
