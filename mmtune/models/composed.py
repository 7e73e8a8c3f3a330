"""Vision tower, projector and language model put together: what the model is and what it computes."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import IMAGE_TOKEN, ModelInputs
from mmtune.data.rendering.templates import Thinking, get_template
from mmtune.models.adapters import add_adapters
from mmtune.models.attention.packed import PACKED, packed_hidden
from mmtune.models.decoding.alone import Alone
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.turn_ends import end_ids, end_texts
from mmtune.models.fitness.check import fitness_of
from mmtune.models.head import Head
from mmtune.models.inputs import model_inputs
from mmtune.models.language import empty_language, load_config, load_language, load_tokenizer
from mmtune.models.projector import build_projector, spread_of_words
from mmtune.models.spec import ModelSpec
from mmtune.models.vision import VisionTower, build_tower
from mmtune.models.window import PastWindow, window_of

BATCH_TOKENS = 16384  # 0.8 GB of keys and values for 135M parameters, 8 GB for 7B in bfloat16


class ComposedModel(nn.Module):
    """A language model that sees photos through a frozen tower and a projector.

    Attributes:
        spec: what it is made of.
        language: the causal language model, inside peft's wrapper where there are adapters.
        tower: the vision tower, or None in a text-only model.
        projector: features to word embeddings, or None.
        name: what it is called in tables.
        share_prefixes: compute what several prompts of a call begin with once.
        batch_tokens: tokens whose keys and values are in memory at once in generation; halved when it runs out.
        past_window: what becomes of a prompt that is too long, `refuse` or `shorten`; see `mmtune.models.window`.
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
        self.batch_tokens = BATCH_TOKENS
        self.past_window: PastWindow = "refuse"
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
    ) -> Self:
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

    @property
    def usage(self) -> dict[str, int]:
        """Running counts: prompt_tokens, generated_tokens, reused_tokens, tower_passes."""
        return {**self._counts, "tower_passes": self.tower.images_encoded if self.tower else 0}

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
        image_positions = batch.input_ids == IMAGE_TOKEN
        words: torch.Tensor = self.base_language.get_input_embeddings()(batch.input_ids.masked_fill(image_positions, 0))
        seen, marked = self._seen(batch), batch.image_tokens
        if marked != (0 if seen is None else len(seen)):
            found = "no photos" if seen is None else f"{len(seen)} photo features"
            raise ValueError(f"{', '.join(batch.where)}: {marked} photo positions for {found}")
        return words if seen is None else words.masked_scatter(image_positions[:, None], seen.to(words.dtype))

    def _seen(self, batch: PackedBatch) -> torch.Tensor | None:
        """The photos of a pack as the language model takes them: [positions, hidden]."""
        if batch.pixels is None and batch.features is None:
            return None
        if self.tower is None or self.projector is None:
            raise ValueError(f"{', '.join(batch.where)}: photos for a model without a vision tower")
        features = self.tower(batch.pixels) if batch.features is None else self.tower.standardised(batch.features)
        projected: torch.Tensor = self.projector(features.to(next(self.projector.parameters()).dtype))
        return projected.flatten(0, 1)

    def count(self, counts: Counts) -> None:
        """Add what a call computed to `usage`."""
        self._counts["prompt_tokens"] += counts.computed
        self._counts["reused_tokens"] += counts.reused
        self._counts["generated_tokens"] += counts.generated

    def end_ids(self) -> list[int]:
        """The tokens that end an answer: see `mmtune.models.decoding.turn_ends`."""
        return end_ids(self.template, self.tokenizer, self.base_language)

    def end_texts(self) -> tuple[str, ...]:
        """The markers that end a turn and are text to the tokenizer, not one token."""
        return end_texts(self.template, self.tokenizer)
