"""A completion while it is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtune.interfaces import FinishReason
from mmtune.models.decoding.prefixes import TokenIds
from mmtune.models.decoding.sampler import Numbers
from mmtune.models.decoding.stopping import StopConditions, StreamDecoder


class Draft:
    """A completion while it is written.

    Attributes:
        prompt: token ids that it follows; below 0 the places of images.
        written: its own token ids.
        numbers: its random numbers, one for each token.
        logprob: the sum of its tokens' log-probabilities, where they are asked for.
    """

    def __init__(self, prompt: TokenIds, conditions: StopConditions, tokenizer: Any, numbers: Numbers) -> None:
        self.prompt, self.numbers = prompt, numbers
        self.written: list[int] = []
        self.logprob = 0.0
        self._decoder = StreamDecoder(conditions, tokenizer)
        self.most = conditions.max_tokens

    def append(self, token: int, logprob: float = 0.0) -> bool:
        """Take the next token; True if the completion is over."""
        self.written.append(token)
        self.logprob += logprob
        return self._decoder.append(token)

    @property
    def token_ids(self) -> TokenIds:
        """The prompt and what is written: what the next token follows."""
        return np.concatenate([self.prompt, np.array(self.written, dtype=np.int64)])

    @property
    def text(self) -> str:
        """What is written, without the marker that ended it."""
        return self._decoder.text

    @property
    def settled(self) -> str:
        """The text that further tokens cannot change."""
        return self._decoder.settled

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it is over; None before."""
        return self._decoder.finish_reason

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._decoder.done
