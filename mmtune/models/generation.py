"""Greedy or sampled answers for batches of prompts, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from mmtune.models.attention import use_attention

# a model's own generation_config.json may ask for sampling or for a penalty on repetition
_PLAIN = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group prompts of similar length so that a batch, padded to its longest, stays within `budget` tokens.

    Args:
        lengths: tokens of each prompt, room for the answer included.
        budget: tokens a batch may hold; a prompt above it goes alone.

    Yields:
        Indices of a batch, longest batches first.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The end of the earliest stop string in the text, or None."""
    ends = [(at, at + len(s)) for s in stop if s and (at := text.find(s)) >= 0]
    return min(ends)[1] if ends else None


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer.

    Attributes:
        max_new_tokens: the most tokens it may have.
        stop: strings; the answer includes the first.
        end_ids: tokens that are not part of it.
        end_text: text that is not part of it either, where no token says the same.
    """

    max_new_tokens: int
    stop: Sequence[str]
    end_ids: Sequence[int]
    end_text: str

    def read(self, ids: Sequence[int], tokenizer: Any) -> tuple[str, bool]:
        """The answer as far as these tokens say it, and whether it is over."""
        said = ids[:-1] if ids[-1] in self.end_ids else ids
        text: str = tokenizer.decode(said, skip_special_tokens=True)
        stopped = first_stop(text, [*self.stop, self.end_text])
        over = stopped is not None or not len(said) == len(ids) < self.max_new_tokens
        return text[:stopped].removesuffix(self.end_text), over

    def answer(self, ids: Sequence[int], tokenizer: Any) -> str | None:
        """The answer that these tokens are, or None if it is not over yet."""
        text, over = self.read(ids, tokenizer)
        return text if over else None

    def settled(self, text: str) -> str:
        """The text without an end that further tokens may change: part of a character, or of the end marker."""
        text = text.rstrip("\ufffd")
        begun = range(min(len(self.end_text) - 1, len(text)), 0, -1)
        return next((text[:-n] for n in begun if text.endswith(self.end_text[:n])), text)


class _Ended(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stop each row of a batch where its answer is over."""

    def __init__(self, ending: Ending, tokenizer: Any) -> None:
        self.ending, self.tokenizer = ending, tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which rows are done: bool [rows]."""
        over = [self.ending.answer(row, self.tokenizer) is not None for row in input_ids.tolist()]
        return torch.tensor(over, device=input_ids.device)


@torch.inference_mode()
def generate_batch(
    language: Any,
    tokenizer: Any,
    embeddings: Sequence[torch.Tensor],
    ending: Ending,
    options: dict[str, Any],
) -> tuple[list[str], int]:
    """Answer a batch.

    Args:
        language: the causal language model.
        tokenizer: its tokenizer.
        embeddings: one [tokens, hidden] tensor per prompt.
        ending: what ends an answer.
        options: of transformers' `generate` (temperature, top_p, …).

    Returns:
        The answers, and how many tokens were generated.
    """
    end_ids = ending.end_ids
    pad = end_ids[0] if end_ids else tokenizer.pad_token_id or 0
    longest = max(len(e) for e in embeddings)
    padded = embeddings[0].new_zeros(len(embeddings), longest, embeddings[0].shape[-1])
    mask = torch.zeros(len(embeddings), longest, dtype=torch.long, device=padded.device)
    for row, embedded in enumerate(embeddings):
        padded[row, longest - len(embedded) :] = embedded
        mask[row, longest - len(embedded) :] = 1
    with use_attention(language, "sdpa"):
        out = language.generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=ending.max_new_tokens,
            stopping_criteria=StoppingCriteriaList([_Ended(ending, tokenizer)]),
            eos_token_id=list(end_ids) or None,
            pad_token_id=pad,
            **{**_PLAIN, **options},
        )
    answers, generated = [], 0
    for row in out.tolist():
        # what follows the end of an answer is padding
        tokens, answer = next(
            (n, text) for n in range(1, len(row) + 1) if (text := ending.answer(row[:n], tokenizer)) is not None
        )
        answers.append(answer)
        generated += tokens
    return answers, generated
