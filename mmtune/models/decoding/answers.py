"""Greedy or sampled answers for batches of prompts, cut at the first stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from mmtune.interfaces import FinishReason

_CONTEXT = 16  # tokens that further ones are decoded with; more than a character or a cleaned-up space spans
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of sentencepiece that is one byte of a character
# a model's own generation_config.json may ask for sampling or for a penalty on repetition
PLAIN = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The end of the earliest stop string in the text, or None."""
    ends = [(at, at + len(s)) for s in stop if s and (at := text.find(s)) >= 0]
    return min(ends)[1] if ends else None


def _without_end(text: str, ends: Sequence[str]) -> str:
    """The text without the marker at its end, the longest where several fit."""
    return text.removesuffix(max((end for end in ends if text.endswith(end)), key=len, default=""))


class Response(str):
    """The text of an answer that knows why it ended.

    Attributes:
        finish_reason: `stop` at its end or a stop string, `length` at the most tokens that were asked for, `window`
            where the model can read no further.
    """

    finish_reason: FinishReason

    def __new__(cls, text: str, finish_reason: FinishReason = "stop") -> Response:
        """The text with its reason."""
        response = super().__new__(cls, text)
        response.finish_reason = finish_reason
        return response


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer.

    Attributes:
        max_tokens: the most tokens it may have.
        stop: strings; the answer includes the first.
        end_ids: tokens that are not part of it.
        end_texts: texts that are not part of it either, where no token says the same.
        limited_by: why it may have no more tokens.
    """

    max_tokens: int
    stop: Sequence[str]
    end_ids: Sequence[int]
    end_texts: Sequence[str] = ()
    limited_by: FinishReason = "length"

    def settled(self, text: str) -> str:
        """The text without an end that further tokens may change: part of a character, or of the end marker."""
        text = text.rstrip("\ufffd")
        begun = (n for end in self.end_texts for n in range(1, len(end)) if text.endswith(end[:n]))
        return text[: len(text) - max(begun, default=0)]


class Answer:
    """An answer as its tokens come; a token of a long one costs what a token of a short one does.

    Attributes:
        text: the answer as far as its tokens say it; a `Response` once it is complete.
        tokens: how many there are, that which ended it included.
        over: whether it is complete.
    """

    def __init__(self, ending: Ending, tokenizer: Any) -> None:
        """
        Args:
            ending: what ends it.
            tokenizer: the model's.
        """
        self.text, self.tokens, self.over = "", 0, False
        self._ending, self._tokenizer = ending, tokenizer
        self._head = ""  # what the tokens before `_context` and those in it say
        self._context: list[int] = []  # the last of these, which following tokens are decoded with: spaces, characters
        self._new: list[int] = []  # the tokens after them

    def add(self, token: int) -> bool:
        """Take the next token; True if the answer is over."""
        self.tokens += 1
        ended = token in self._ending.end_ids
        # padded vocabularies have rows that are no token: they say nothing
        if not ended and _is_token(self._tokenizer, token):
            self._new.append(token)
        text = self._decoded()
        stopped = first_stop(text, [*self._ending.stop, *self._ending.end_texts])
        self.text = _without_end(text[:stopped], self._ending.end_texts)
        finished = ended or stopped is not None
        self.over = finished or self.tokens >= self._ending.max_tokens
        if self.over:
            self.text = Response(self.text, "stop" if finished else self._ending.limited_by)
        return self.over

    def _decoded(self) -> str:
        """What all tokens say."""
        text = self._following(self._new)
        known, new = self._new[:-_CONTEXT], self._new[-_CONTEXT:]
        # sentencepiece decodes neighbouring bytes together: one that is no character spoils those before it
        if len(known) >= 2 * _CONTEXT and not _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(known[-1])):
            before = self._head, self._context, self._new
            self._head, self._context, self._new = self._following(known), known[-_CONTEXT:], new
            said = self._said(self._context)
            # not so where the context ends within a character, or says nothing but spaces
            if self._following(new) != text or said.endswith("\ufffd") or not said.strip():
                self._head, self._context, self._new = before
        return text

    def _following(self, new: Sequence[int]) -> str:
        """What is said up to these tokens, which follow the context."""
        return self._head + self._said([*self._context, *new])[len(self._said(self._context)) :]

    def _said(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _is_token(tokenizer: Any, token: int) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except IndexError:  # slow tokenizers of sentencepiece
        return False


class _Ended(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stop each row of a batch where its answer is over."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which rows are done: bool [rows]."""
        newest = input_ids[:, -1].tolist()
        over = [answer.over or answer.add(token) for answer, token in zip(self.answers, newest, strict=True)]
        return torch.tensor(over, device=input_ids.device)


@torch.inference_mode()
def generate(
    language: Any, tokenizer: Any, inputs: dict[str, torch.Tensor], endings: Sequence[Ending], options: dict[str, Any]
) -> tuple[list[str], int]:
    """Answer by transformers' own `generate`.

    Args:
        language: the causal language model.
        tokenizer: its tokenizer.
        inputs: the prompts, as the model takes them.
        endings: what ends each answer.
        options: of transformers' `generate` (temperature, top_p, …).

    Returns:
        The answers, and how many tokens were generated.
    """
    end_ids = endings[0].end_ids
    answers = [Answer(ending, tokenizer) for ending in endings]
    given = next(iter(inputs.values()))
    mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    language.generate(
        **{"attention_mask": mask, **inputs},
        max_new_tokens=endings[0].max_tokens,
        stopping_criteria=StoppingCriteriaList([_Ended(answers)]),
        eos_token_id=list(end_ids) or None,
        pad_token_id=end_ids[0] if end_ids else 0,  # any token that the embedding has: nothing is read after it
        **{**PLAIN, **options},
    )
    return [answer.text for answer in answers], sum(answer.tokens for answer in answers)


def padded(embeddings: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompts of one [tokens, hidden] tensor each, padded on the left, as transformers' `generate` takes them."""
    longest = max(len(e) for e in embeddings)
    together = embeddings[0].new_zeros(len(embeddings), longest, embeddings[0].shape[-1])
    mask = torch.zeros(len(embeddings), longest, dtype=torch.long, device=together.device)
    for row, embedded in enumerate(embeddings):
        together[row, longest - len(embedded) :] = embedded
        mask[row, longest - len(embedded) :] = 1
    return {"inputs_embeds": together, "attention_mask": mask}
