"""Choice of the next token: the likeliest, or one drawn from what temperature, top-k, top-p and min-p leave."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmtune.common.devices import on_device
from mmtune.interfaces import SamplingParams

Numbers = np.random.Generator


class Written(Protocol):
    """A completion, as far as it is written.

    Attributes:
        prompt: token ids that it follows.
        written: token ids of its own.
        numbers: its random numbers, one for each token.
    """

    @property
    def prompt(self) -> np.ndarray: ...  # noqa: D102
    @property
    def written(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def numbers(self) -> Numbers: ...  # noqa: D102
    def append(self, token: int, logprob: float = 0.0) -> bool: ...  # noqa: D102


def random_numbers(seed: int | None, name: str, sample: int) -> Numbers:
    """Random numbers of one completion, which depend on nothing else: Philox (Salmon et al., SC 2011) from a hash.

    Args:
        seed: of the call; None takes one from the operating system.
        name: of the prompt.
        sample: number of the completion among those of the prompt.
    """
    text = f"{secrets.randbits(63) if seed is None else seed}\0{name}\0{sample}"
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])))


class Sampler:
    """Chooses tokens as sampling parameters say. A row's token does not depend on the other rows."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._narrow = LogitsProcessorList()
        if not params.greedy:
            self._narrow.append(TemperatureLogitsWarper(float(params.temperature)))
            if params.top_k:
                self._narrow.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                self._narrow.append(TopPLogitsWarper(float(params.top_p)))
            if params.min_p > 0:
                self._narrow.append(MinPLogitsWarper(float(params.min_p)))

    @property
    def greedy(self) -> bool:
        """Whether the same prompt has the same completion each time."""
        return self._params.greedy

    def extend(self, logits: torch.Tensor, rows: Sequence[Written]) -> None:
        """Choose the next token of each completion, and append it; for the arguments see `choose`."""
        tokens = self.choose(logits, rows)
        logprobs = log_probabilities(logits, tokens) if self._params.logprobs else [0.0] * len(tokens)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.append(token, logprob)

    def choose(self, logits: torch.Tensor, rows: Sequence[Written]) -> list[int]:
        """The next token of each completion.

        Args:
            logits: [rows, vocabulary], as the model gives them.
            rows: the completions.
        """
        logits = self.penalized(logits, rows)
        if self.greedy:
            found: list[int] = logits.argmax(-1).tolist()
            return found
        sums = self.probabilities(logits).double().cumsum(-1)
        drawn = on_device(np.array([row.numbers.random() for row in rows]), sums.device)
        places: list[int] = torch.searchsorted(sums, drawn[:, None] * sums[:, -1:], right=True)[:, 0].tolist()
        return places

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What tokens are drawn with: float32 [rows, vocabulary], 0 for those that are left out."""
        unused = torch.zeros(len(logits), 0, dtype=torch.long)  # what was said before, which these do not look at
        narrowed: torch.Tensor = self._narrow(unused, logits.float())
        return narrowed.softmax(-1)

    def penalized(self, logits: torch.Tensor, rows: Sequence[Written]) -> torch.Tensor:
        """Logits after the penalties on what was said before."""
        repetition, presence = self._params.repetition_penalty, self._params.presence_penalty
        if repetition == 1 and presence == 0:
            return logits
        logits = logits.float().clone()
        written = [np.unique(np.asarray(row.written, dtype=np.int64)) for row in rows]
        if repetition != 1:
            said = [np.union1d(row.prompt[row.prompt >= 0], own) for row, own in zip(rows, written, strict=True)]
            places = _places(said, logits.device)
            values = logits[places]
            logits[places] = torch.where(values > 0, values / repetition, values * repetition)
        places = _places(written, logits.device)
        logits[places] = logits[places] - presence
        return logits


def _places(tokens: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of each row's tokens in logits [rows, vocabulary]: two int64 [tokens of all rows]."""
    rows = np.repeat(np.arange(len(tokens)), [len(own) for own in tokens])
    both = on_device(np.stack([rows, np.concatenate(tokens)]).astype(np.int64), device)
    return both[0], both[1]


def log_probabilities(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """The natural log-probability of a token a row by the model itself, whatever it was drawn with."""
    chosen = on_device(tokens, logits.device)[:, None]
    found: list[float] = logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist()
    return found
