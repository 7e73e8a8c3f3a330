"""Greedy or sampled answers for batches of prompts, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

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


class StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stop each row of a batch at its first stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which rows are done: bool [rows]."""
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return torch.tensor([first_stop(t, self.stop) is not None for t in texts], device=input_ids.device)


@torch.inference_mode()
def generate_batch(
    language: Any,
    tokenizer: Any,
    embeddings: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    end_ids: Sequence[int],
    options: dict[str, Any],
    end_text: str = "",
) -> tuple[list[str], int]:
    """Answer a batch.

    Args:
        language: the causal language model.
        tokenizer: its tokenizer.
        embeddings: one [tokens, hidden] tensor per prompt.
        max_new_tokens: the most tokens an answer may have.
        stop: strings that end an answer; the answer includes the first.
        end_ids: tokens that end an answer, and are not part of it.
        options: of transformers' `generate` (temperature, top_p, …).
        end_text: text that ends an answer and is not part of it, where no token does.

    Returns:
        The answers, and how many tokens were generated.
    """
    pad = end_ids[0] if end_ids else tokenizer.pad_token_id or 0
    longest = max(len(e) for e in embeddings)
    padded = embeddings[0].new_zeros(len(embeddings), longest, embeddings[0].shape[-1])
    mask = torch.zeros(len(embeddings), longest, dtype=torch.long, device=padded.device)
    for row, embedded in enumerate(embeddings):
        padded[row, longest - len(embedded) :] = embedded
        mask[row, longest - len(embedded) :] = 1
    stops = [*stop, end_text]
    criteria = StoppingCriteriaList([StopStrings(tokenizer, stops)]) if any(stops) else None
    out = language.generate(
        inputs_embeds=padded,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        stopping_criteria=criteria,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad,
        **{**_PLAIN, **options},
    )
    answers, generated = [], 0
    for row in out.tolist():
        end = next((i for i, token in enumerate(row) if token in end_ids), len(row))
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        stopped = first_stop(text, stops)
        # what follows a stop string is padding; an end token was said by the model
        generated += end if stopped is not None else min(end + 1, len(row))
        answers.append(text[:stopped].removesuffix(end_text))
    return answers, generated
