"""Answers and log-likelihoods in the way that a model's language part is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmtune.generation.prompts import PromptEncoder
from mmtune.models.attention.packed import use_attention
from mmtune.models.composed import ComposedModel
from mmtune.models.decoding.alone import OneByOne
from mmtune.models.decoding.answers import Ending, generate, padded
from mmtune.models.decoding.batches import in_batches, longest_first, padded_batch
from mmtune.models.decoding.engine import Counts, PrefixSharing
from mmtune.models.decoding.prefixes import Keys


class Answering:
    """Computes the prompts of one call.

    Attributes:
        counts: tokens computed, reused and generated so far.
    """

    def __init__(self, model: ComposedModel, encoder: PromptEncoder, batch_tokens: int) -> None:
        """
        Args:
            model: answers.
            encoder: gives the embeddings of keys.
            batch_tokens: tokens that a pass of several prompts may hold; halved when memory runs out.
        """
        self._model, self._encoder, self._batch_tokens = model, encoder, batch_tokens
        self._engine: PrefixSharing | OneByOne
        if model.fitness.packed:
            self._engine = PrefixSharing(
                model.base_language,
                model.tokenizer,
                encoder.embed,
                body=model.body,
                head=model.output_layer,
                batch_tokens=batch_tokens,
                share=model.share_prefixes,
            )
        else:
            self._engine = OneByOne(
                model.base_language, model.tokenizer, encoder.embed, alone=model.alone, head=model.output_layer
            )
        self.counts: Counts = self._engine.counts

    def generate(self, prompts: Sequence[Keys], ending: Ending, options: dict[str, Any]) -> list[str]:
        """The answer to each prompt, greedy without options of transformers' `generate`.

        Raises:
            UserError: memory is too small for one.
        """
        if isinstance(self._engine, OneByOne):
            return self._engine.generate(prompts, ending, options)
        return self._by_transformers(prompts, ending, options) if options else self._engine.generate(prompts, ending)

    def loglikelihoods(self, sequences: Sequence[Keys], scored: Sequence[int]) -> list[float]:
        """The summed natural-log probability of each sequence's last `scored` tokens, given those before them.

        Raises:
            UserError: memory is too small for one.
        """
        return self._engine.loglikelihoods(sequences, scored)

    def _by_transformers(self, prompts: Sequence[Keys], ending: Ending, options: dict[str, Any]) -> list[str]:
        """Answers by transformers' own `generate`, many in a call."""
        model, answers = self._model, [""] * len(prompts)

        def answer(batch: list[int]) -> None:
            embeddings = [self._encoder.embed(prompts[i]) for i in batch]
            with use_attention(model.base_language, model.own_attention):
                texts, generated = generate(
                    model.base_language, model.tokenizer, padded(embeddings), [ending] * len(batch), options
                )
            self.counts.computed += sum(map(len, embeddings))
            self.counts.generated += generated
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text

        lengths = [len(keys) + ending.max_tokens for keys in prompts]
        sizes = [len(keys) for keys in prompts]
        in_batches(longest_first(lengths), sizes, self._batch_tokens, padded_batch(lengths), answer)
        return answers
