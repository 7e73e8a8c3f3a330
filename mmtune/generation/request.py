"""Completions and log-likelihoods for the prompts of one call: rendered, fitted to the window, computed, counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.common.errors import UserError
from mmtune.data.conversation import IMAGE_PLACEHOLDER
from mmtune.data.rendering.templates import THOUGHT_END, join_response_prefix
from mmtune.generation.fitting import PromptWriter
from mmtune.generation.prompts import PromptEncoder, as_text
from mmtune.interfaces import Completion, FinishReason, Prompt, SamplingParams
from mmtune.models.composed import ComposedModel
from mmtune.models.decoding.alone import OneByOne
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import PrefixSharing
from mmtune.models.decoding.passes import Passes
from mmtune.models.decoding.sampler import Numbers, Sampler, random_numbers
from mmtune.models.decoding.stopping import StopConditions
from mmtune.models.window import room_left


@dataclass
class _Pending:
    """Unfinished completion of a prompt.

    Attributes:
        number: number of the prompt.
        text: text that the next part of the completion follows.
        numbers: random numbers of the completion.
        thought: the thought, once it is written.
        draft: newest part of the completion; None if there is none, or if the window had no room for it.
    """

    number: int
    text: str
    numbers: Numbers
    thought: Draft | None = None
    draft: Draft | None = None


class Request:
    """Prompts of one call to a model. Common prefixes, and an image of several prompts, are computed once."""

    def __init__(self, model: ComposedModel, prompts: Sequence[Prompt]) -> None:
        """
        Args:
            model: model that answers.
            prompts: prompts with their images opened.
        """
        self._model, self._prompts = model, list(prompts)
        self._encoder = PromptEncoder(model)
        self._engine = engine_of(model, self._encoder)

    def complete(self, params: SamplingParams) -> list[list[Completion]]:
        """Generate the completions of each prompt.

        Raises:
            UserError: a prompt is longer than the model reads, or the template has no thoughts.
        """
        sampler, thinking = Sampler(params), params.thinking_budget > 0
        writer = PromptWriter(self._model, self._encoder, self._prompts, thinking=thinking)
        room = params.max_tokens + params.thinking_budget
        texts = [writer.with_room(number, room) for number in range(len(self._prompts))]
        self._prompts = writer.prompts
        pending = [
            _Pending(number, text, random_numbers(params.seed, self._name(number), sample))
            for number, text in enumerate(texts)
            for sample in range(params.n)
        ]
        try:
            answered = pending
            if thinking:
                self._write(pending, params.thinking_budget, (THOUGHT_END,), sampler)
                answered = [one for one in pending if self._thought(one, params.thinking_overrun)]
            self._write(answered, params.max_tokens, params.stop, sampler)
        finally:
            self._model.count(self._engine.counts)
        found = [_completion(one, logprobs=params.logprobs) for one in pending]
        return [found[start : start + params.n] for start in range(0, len(found), params.n)]

    def loglikelihood(self, choices_of: Sequence[Sequence[str]]) -> list[list[float]]:
        """Compute the summed natural log-probability of each prompt's choices; NaN for a choice without tokens.

        Raises:
            UserError: a choice is empty, or a prompt is longer than the model reads.
        """
        writer = PromptWriter(self._model, self._encoder, self._prompts)
        sequences, scored = [], []
        for number, given in enumerate(choices_of):
            if "" in given:
                raise UserError(f"prompt {number + 1}: a choice is empty; leave it out")
            context, said = writer.with_choices(number, given)
            prompt = self._encoder.token_ids(context, writer.prompts[number].images)
            sequences += [np.concatenate([prompt, np.array(tokens, dtype=np.int64)]) for tokens in said]
            scored += [len(tokens) for tokens in said]
        try:
            sums = self._engine.loglikelihoods(sequences, scored)
        finally:
            self._model.count(self._engine.counts)
        values = iter([total if tokens else math.nan for total, tokens in zip(sums, scored, strict=True)])
        return [[next(values) for _ in given] for given in choices_of]

    def _name(self, number: int) -> str:
        name = self._prompts[number].name
        return str(number) if name is None else name

    def _write(self, pending: Sequence[_Pending], limit: int, stop: Sequence[str], sampler: Sampler) -> None:
        """Generate the continuation of each text: at most `limit` tokens, and no more than fit into the window."""
        merges = sampler.greedy and self._model.share_prefixes
        conditions = stop_conditions(self._model, limit, stop)
        drafts: list[Draft] = []
        known: dict[bytes, Draft] = {}
        for one in pending:
            ids = self._encoder.token_ids(one.text, self._prompts[one.number].images)
            if merges and ids.tobytes() in known:
                one.draft = known[ids.tobytes()]
                self._engine.counts.reused += len(ids)
            elif (room := room_left(len(ids), limit, self._model.window)) < 1:
                one.draft = None
            else:
                one.draft = Draft(ids, conditions.within(room), self._model.tokenizer, one.numbers)
                known[ids.tobytes()] = one.draft
                drafts.append(one.draft)
        self._engine.complete(drafts, sampler)

    def _thought(self, one: _Pending, overrun: str) -> bool:
        """Insert the thought before the answer; return False if no answer is to follow."""
        one.thought, one.draft = one.draft, None
        if one.thought is None:
            return False
        thought = one.thought.text
        if not thought.endswith(THOUGHT_END):
            if overrun == "unparsed" or one.thought.finish_reason == "stop":
                return False
            thought = closed(thought)
        # an `<image>` that the model wrote is text, not an image
        text = one.text + f"{thought}\n\n".replace(IMAGE_PLACEHOLDER, "image")
        one.text = join_response_prefix(text, as_text(self._prompts[one.number].response_prefix))
        return True


def engine_of(model: ComposedModel, encoder: PromptEncoder) -> PrefixSharing | OneByOne:
    """Return the engine that computes the sequences of a call: together, or one by one if the model requires it."""
    if not model.fitness.packed:
        return OneByOne(model.base_language, encoder.embed, alone=model.alone, head=model.output_layer)
    return PrefixSharing(passes_of(model, encoder), batch_tokens=model.batch_tokens, share=model.share_prefixes)


def passes_of(model: ComposedModel, encoder: PromptEncoder) -> Passes:
    """Return the parts of the model that the engine calls."""
    return Passes(model.base_language, model.body, model.output_layer, encoder.embed, model.graphs)


def stop_conditions(model: ComposedModel, limit: int, stop: Sequence[str]) -> StopConditions:
    """Return the stop conditions of a completion: token limit, stop strings, and the model's end tokens and texts."""
    return StopConditions(limit, stop, model.end_ids(), model.end_texts())


def closed(thought: str) -> str:
    """Return an unfinished thought with the mark that ends it."""
    return f"{thought}\n{THOUGHT_END}"


def _completion(one: _Pending, *, logprobs: bool) -> Completion:
    parts = [draft for draft in (one.thought, one.draft) if draft is not None]
    reason: FinishReason = "window"
    if one.draft is not None:
        reason = one.draft.finish_reason or "window"
    elif one.thought is not None and not one.thought.text.endswith(THOUGHT_END):
        reason = "thinking" if one.thought.finish_reason == "length" else one.thought.finish_reason or "window"
    thought = "" if one.thought is None else one.thought.text
    if one.thought is not None and one.draft is not None and not thought.endswith(THOUGHT_END):
        thought = closed(thought)
    return Completion(
        "" if one.draft is None else one.draft.text,
        thought,
        reason,
        sum(len(draft.written) for draft in parts),
        sum(draft.logprob for draft in parts) if logprobs else None,
    )
