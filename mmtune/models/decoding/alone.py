"""Documents, answers and log-likelihoods one by one, through the language model's own code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from mmtune.models.decoding.batches import in_batches, longest_first
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.prefixes import TokenIds
from mmtune.models.decoding.sampler import Sampler
from mmtune.models.decoding.token_stream import by_transformers
from mmtune.models.head import LOGIT_ROWS, Head

T = TypeVar("T")


class Alone:
    """Gives the hidden states of one sequence at a time, which nothing else can have a part in."""

    def __init__(self, language: Any, body: str, *, by_embeddings: bool) -> None:
        """
        Args:
            language: a causal language model of transformers.
            body: the name of the module in it that gives the hidden states.
            by_embeddings: whether it is given embeddings, or token ids.
        """
        self._language, self._body, self._by_embeddings = language, body, by_embeddings

    def hidden(self, ids: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """The last hidden states [tokens, hidden] of a sequence: `ids` [tokens], `embeddings` [tokens, hidden]."""
        forget_lengths(self._language)
        given = {"inputs_embeds": embeddings[None]} if self._by_embeddings else {"input_ids": ids[None]}
        out = self._language.get_submodule(self._body)(**given, use_cache=False)
        hidden: torch.Tensor = out[0][0]
        return hidden

    def prompt(self, ids: TokenIds, embed: Callable[[TokenIds], torch.Tensor]) -> dict[str, torch.Tensor]:
        """A prompt as transformers' `generate` takes it: as token ids unless it has photos."""
        forget_lengths(self._language)
        if bool((ids < 0).any()):
            return {"inputs_embeds": embed(ids)[None]}
        return {"input_ids": token_ids(ids, self._language)[None]}

    def documents(self, ids: torch.Tensor, embeddings: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The last hidden states [tokens, hidden] of a pack's documents, side by side."""
        pairs = zip(ids.split(list(lengths)), embeddings.split(list(lengths)), strict=True)
        return torch.cat([self.hidden(*pair) for pair in pairs])


class OneByOne:
    """A language model that completes and scores token sequences one after the other.

    Attributes:
        counts: tokens computed so far.
    """

    def __init__(self, language: Any, embed: Callable[[TokenIds], torch.Tensor], *, alone: Alone, head: Head) -> None:
        """
        Args:
            language: a causal language model of transformers, with its own attention.
            embed: gives the embeddings [tokens, hidden] of token ids.
            alone: gives the hidden states of a sequence.
            head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
        """
        self._language, self._embed = language, embed
        self._alone, self._head = alone, head
        self.counts = Counts()

    def complete(self, drafts: Sequence[Draft], sampler: Sampler) -> None:
        """Write drafts to their ends, with the tokens' logits from transformers' own `generate`.

        Raises:
            UserError: memory is too small for one.
        """
        self._each([draft.prompt for draft in drafts], lambda number: list(self.stream(drafts[number], sampler)))

    def stream(self, draft: Draft, sampler: Sampler) -> Generator[None, None, None]:
        """Write a draft token by token."""
        with torch.inference_mode():
            inputs = self._alone.prompt(draft.prompt, self._embed)
        yield from by_transformers(self._language, inputs, draft, sampler)
        self.counts.computed += len(draft.prompt)
        self.counts.generated += len(draft.written)

    def loglikelihoods(self, sequences: Sequence[TokenIds], scored: Sequence[int]) -> list[float]:
        """The summed natural-log probability of each sequence's last `scored` tokens, given those before them.

        Raises:
            UserError: memory is too small for one.
        """

        def score(number: int) -> float:
            keys, count = sequences[number], scored[number]
            if not count:
                return 0.0
            ids, embeddings = token_ids(keys[:-1], self._language), self._embed(keys[:-1])
            hidden = self._alone.hidden(ids, embeddings)[-count:]
            targets = token_ids(keys[-count:], self._language)
            total = 0.0
            for states, wanted in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
                logits = self._head(states).float().log_softmax(-1)
                total += float(logits.gather(1, wanted[:, None]).sum())
            self.counts.computed += len(ids)
            return total

        return self._each(sequences, score)

    def _each(self, sequences: Sequence[TokenIds], compute: Callable[[int], T]) -> list[T]:
        found: dict[int, T] = {}
        lengths = [len(keys) for keys in sequences]

        def run(batch: list[int]) -> None:
            found[batch[0]] = compute(batch[0])

        in_batches(longest_first(lengths), lengths, 1, lambda waiting, _: [waiting[0]], run)
        return [found[number] for number in range(len(sequences))]


def forget_lengths(language: Any) -> None:
    """Set rotary frequencies that grow with the longest text seen so far back to those of the beginning."""
    for module in language.modules():
        lengths = [name for name in vars(module) if name.endswith("max_seq_len_cached")]
        for name in lengths:
            prefix = name.removesuffix("max_seq_len_cached")
            first = getattr(module, f"{prefix}original_inv_freq", None)
            now = module._buffers.get(f"{prefix}inv_freq")
            if first is not None and now is not None:
                setattr(module, name, module.original_max_seq_len)
                module._buffers[f"{prefix}inv_freq"] = first.to(now.device)


def token_ids(keys: TokenIds, language: Any) -> torch.Tensor:
    """Token ids, 0 in the places of photos."""
    device = language.get_input_embeddings().weight.device
    return torch.from_numpy(np.asarray(keys).clip(0)).to(device)
