"""The tokens of one answer by transformers' `generate`, each as soon as it is chosen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mmtune.models.decoding.answers import PLAIN


def spoken(
    language: Any, inputs: dict[str, torch.Tensor], most: int, choose: Callable[[torch.Tensor], int]
) -> Generator[int, None, None]:
    """Generate an answer in a thread of its own, which ends with the iterator.

    Args:
        language: a causal language model of transformers, with its own attention.
        inputs: the prompt, as the model takes it.
        most: tokens that there may be.
        choose: gives a token for the logits [1, vocabulary].

    Yields:
        The tokens.
    """
    given = next(iter(inputs.values()))
    mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    tokens: queue.Queue[int | BaseException | None] = queue.Queue()
    wanted, over = threading.Semaphore(0), threading.Event()

    def generate() -> None:
        try:
            with torch.inference_mode():
                language.generate(
                    **inputs,
                    attention_mask=mask,
                    max_new_tokens=most,
                    logits_processor=LogitsProcessorList([_Chosen(choose, tokens, wanted, over)]),
                    stopping_criteria=StoppingCriteriaList([_Over(over)]),
                    eos_token_id=None,
                    pad_token_id=0,
                    **PLAIN,
                )
            tokens.put(None)
        except BaseException as error:  # raised where the tokens are read
            tokens.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while True:
            wanted.release()
            token = tokens.get()
            if token is None:
                return
            if isinstance(token, BaseException):
                raise token
            yield token
    finally:
        over.set()
        wanted.release()
        thread.join()


class _Chosen(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Leaves nothing but the token that is chosen, once it is asked for."""

    def __init__(
        self,
        choose: Callable[[torch.Tensor], int],
        tokens: queue.Queue[Any],
        wanted: threading.Semaphore,
        over: threading.Event,
    ) -> None:
        self._choose, self._tokens, self._wanted, self._over = choose, tokens, wanted, over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._wanted.acquire()
        token = 0
        if not self._over.is_set():
            token = self._choose(scores)
            self._tokens.put(token)
        only = torch.full_like(scores, float("-inf"))
        only[:, token] = 0
        return only


class _Over(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stop once nobody asks for more."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], self._over.is_set(), device=input_ids.device)
