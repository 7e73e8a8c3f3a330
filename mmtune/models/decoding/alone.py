"""Documents, answers and log-likelihoods one by one, through the language model's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from mmtune.models.decoding.answers import Ending, generate
from mmtune.models.decoding.batches import in_batches, longest_first
from mmtune.models.decoding.engine import Counts
from mmtune.models.decoding.prefixes import Keys
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

    def prompt(self, keys: Keys, embed: Callable[[Keys], torch.Tensor]) -> dict[str, torch.Tensor]:
        """A prompt as transformers' `generate` takes it: as token ids unless it has photos."""
        forget_lengths(self._language)
        if bool((keys < 0).any()):
            return {"inputs_embeds": embed(keys)[None]}
        return {"input_ids": token_ids(keys, self._language)[None]}

    def documents(self, ids: torch.Tensor, embeddings: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The last hidden states [tokens, hidden] of a pack's documents, side by side."""
        pairs = zip(ids.split(list(lengths)), embeddings.split(list(lengths)), strict=True)
        return torch.cat([self.hidden(*pair) for pair in pairs])


class OneByOne:
    """A language model that answers and scores token sequences one after the other.

    Attributes:
        counts: tokens computed so far.
    """

    def __init__(
        self, language: Any, tokenizer: Any, embed: Callable[[Keys], torch.Tensor], *, alone: Alone, head: Head
    ) -> None:
        """
        Args:
            language: a causal language model of transformers, with its own attention.
            tokenizer: its tokenizer.
            embed: gives the embeddings [tokens, hidden] of a sequence's keys.
            alone: gives the hidden states of a sequence.
            head: gives the logits [rows, vocabulary] of hidden states [rows, hidden].
        """
        self._language, self._tokenizer, self._embed = language, tokenizer, embed
        self._alone, self._head = alone, head
        self.counts = Counts()

    def generate(self, prompts: Sequence[Keys], ending: Ending, options: dict[str, Any]) -> list[str]:
        """The answer to each prompt, which is that of transformers' `generate`; greedy without its options.

        Raises:
            UserError: memory is too small for one.
        """

        def answer(number: int) -> str:
            keys = prompts[number]
            inputs = self._alone.prompt(keys, self._embed)
            texts, generated = generate(self._language, self._tokenizer, inputs, [ending], options)
            self.counts.computed += len(keys)
            self.counts.generated += generated
            return texts[0]

        return self._each(prompts, answer)

    def loglikelihoods(self, sequences: Sequence[Keys], scored: Sequence[int]) -> list[float]:
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

    def _each(self, sequences: Sequence[Keys], compute: Callable[[int], T]) -> list[T]:
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


def token_ids(keys: Keys, language: Any) -> torch.Tensor:
    """Token ids, 0 in the places of photos."""
    device = language.get_input_embeddings().weight.device
    return torch.from_numpy(np.asarray(keys).clip(0)).to(device)
