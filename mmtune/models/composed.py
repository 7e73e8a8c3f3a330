"""Composed model of vision tower, projector and language model: its parts and its forward pass."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import ModelInputs
from mmtune.data.rendering.templates import Thinking, get_template
from mmtune.models.adapters import add_adapters
from mmtune.models.attention.packed import PACKED, packed_hidden
from mmtune.models.decoding.alone import Alone
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.passes import Graphs
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
    """Language model that takes images through a frozen vision tower and a projector.

    Attributes:
        spec: parts of the model.
        language: the causal language model, inside peft's wrapper where there are adapters.
        tower: the vision tower, or None in a text-only model.
        projector: maps features to word embeddings; None in a text-only model.
        name: name of the model in tables.
        share_prefixes: whether the common prefix of several prompts of a call is computed only once.
        batch_tokens: tokens whose keys and values are in memory at once in generation; halved when memory runs out.
        graphs: use of CUDA graphs in generation on a GPU.
        past_window: rule for a prompt that is too long, `refuse` or `shorten`; see `mmtune.models.window`.
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
        self.graphs = Graphs()
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
        device: torch.device | None = None,
    ) -> Self:
        """Build a model from its parts, with initial weights in the projector and the adapters.

        The weights that are trained stay float32.

        Args:
            spec: the parts.
            dtype: type of the language model's weights.
            meta: build a model without weights, for counting and planning.
            tokenizer: tokenizer of the language model; read where it is not given.
            device: device for which weights are quantized; by default torch's default device. Other weights may be on
                the CPU: see `torch.nn.Module.to`.

        Raises:
            UserError: a part is unknown or its weights are missing.
        """
        tokenizer = tokenizer or load_tokenizer(spec.language)
        # the cheap parts first, so that an error in them shows before gigabytes are read
        fitness_of(load_config(spec.language), spec.language, sees=spec.vision is not None)
        tower = build_tower(spec.vision, meta=meta) if spec.vision else None
        language = empty_language(spec.language, dtype=dtype) if meta else None
        if language is None:
            language = load_language(spec.language, dtype=dtype, quantise=spec.quantise, device=device)
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
        """Add the spec's adapters to the language model, with initial weights from the spec's seed.

        The weights are drawn on the CPU, so that they are the same on every device and in every process.
        """
        assert self.spec.lora is not None
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(self.spec.seed)
            self.language = add_adapters(self.language, self.spec.lora)

    # ---------------------------------------------------------------- what it is

    def inputs(self) -> ModelInputs:
        """Return the model information that the data needs to prepare batches."""
        return model_inputs(self.spec, self.tokenizer)

    @property
    def base_language(self) -> Any:
        """The transformers model, without peft's wrapper (its layers keep their adapters)."""
        return self.language.get_base_model() if self.spec.lora else self.language

    @property
    def body(self) -> nn.Module:
        """Module of the language model that computes the hidden states."""
        body: nn.Module = self.base_language.get_submodule(self.fitness.body)
        return body

    @property
    def output_layer(self) -> Head:
        """Last step of the language model: hidden states [rows, hidden] to logits [rows, vocabulary]."""
        return Head(self.base_language, self.fitness.body, plain=self.fitness.plain_head)

    @property
    def alone(self) -> Alone:
        """Forward pass that computes the hidden states of one sequence at a time."""
        return Alone(self.base_language, self.fitness.body, by_embeddings=self.fitness.by_embeddings)

    def fix_date(self, date: str) -> None:
        """Set the date that the template writes, in place of the current date or of an earlier setting."""
        self.spec.template_date = date
        self.template = get_template(self.spec.template, self.tokenizer, date)

    @property
    def thinking(self) -> Thinking:
        """Thinking mode of the template: `never`, `optional` or `always`."""
        return self.template.thinking

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.base_language.get_input_embeddings().weight.device
        return device

    @property
    def window(self) -> int | None:
        """Maximum number of tokens that the model reads at once, its answer included; None if there is no limit."""
        return window_of(self.base_language.config)

    @property
    def usage(self) -> dict[str, int]:
        """Running counts: prompt_tokens, generated_tokens, reused_tokens, tower_passes."""
        return {**self._counts, "tower_passes": self.tower.images_encoded if self.tower else 0}

    # ---------------------------------------------------------------- computing

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute the last hidden states [tokens, hidden] of a pack.

        The tower runs only if the pack has images to encode.

        Raises:
            ValueError: images and placeholders differ in number.
        """
        embeddings = self.embed(batch)
        if self.fitness.packed:
            return packed_hidden(self.body, embeddings, batch.position_ids, batch.layout)
        return self.alone.documents(batch.input_ids, embeddings, batch.document_lengths)

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Return word embeddings [tokens, hidden], with projected image features at the positions of IMAGE_TOKEN.

        Raises:
            ValueError: images and placeholders differ in number.
        """
        image_positions = batch.layout.image_positions
        words: torch.Tensor = self.base_language.get_input_embeddings()(batch.input_ids.clamp_min(0))
        seen, marked = self._seen(batch), batch.image_tokens
        if marked != (0 if seen is None else len(seen)):
            found = "no photos" if seen is None else f"{len(seen)} photo features"
            raise ValueError(f"{', '.join(batch.where)}: {marked} photo positions for {found}")
        return words if seen is None else words.index_copy(0, image_positions, seen.to(words.dtype))

    def _seen(self, batch: PackedBatch) -> torch.Tensor | None:
        """Return the projected image features [positions, hidden] of a pack; None if it has no images."""
        if batch.pixels is None and batch.features is None:
            return None
        if self.tower is None or self.projector is None:
            raise ValueError(f"{', '.join(batch.where)}: photos for a model without a vision tower")
        features = self.tower(batch.pixels) if batch.features is None else self.tower.standardised(batch.features)
        projected: torch.Tensor = self.projector(features.to(next(self.projector.parameters()).dtype))
        return projected.flatten(0, 1)

    def count(self, counts: Counts) -> None:
        """Add the token counts of a call to `usage`."""
        self._counts["prompt_tokens"] += counts.computed
        self._counts["reused_tokens"] += counts.reused
        self._counts["generated_tokens"] += counts.generated

    def end_ids(self) -> list[int]:
        """Return the ids of the tokens that end an answer: see `mmtune.models.decoding.turn_ends`."""
        return end_ids(self.template, self.tokenizer, self.base_language)

    def end_texts(self) -> tuple[str, ...]:
        """Return the end-of-turn markers that the tokenizer encodes as text, not as one token."""
        return end_texts(self.template, self.tokenizer)
