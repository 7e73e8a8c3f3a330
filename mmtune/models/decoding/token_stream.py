"""The tokens of one answer by transformers' `generate`, each as soon as it is chosen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.sampler import Sampler

# a model's own generation_config.json may ask for sampling or for a penalty on repetition
PLAIN = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


def by_transformers(
    language: Any, inputs: dict[str, torch.Tensor], draft: Draft, sampler: Sampler
) -> Generator[None, None, None]:
    """Write a draft by transformers' own `generate`, in a thread of its own, which ends with the iterator.

    Args:
        language: a causal language model of transformers, with its own attention.
        inputs: the prompt, as the model takes it.
        draft: what is written.
        sampler: chooses its tokens.

    Yields:
        After each token.
    """
    given = next(iter(inputs.values()))
    mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    steps: queue.Queue[bool | BaseException] = queue.Queue()  # whether there was one more token
    wanted, over = threading.Semaphore(0), threading.Event()

    def generate() -> None:
        try:
            with torch.inference_mode():
                language.generate(
                    **inputs,
                    attention_mask=mask,
                    max_new_tokens=draft.most,
                    logits_processor=LogitsProcessorList([_Chosen(draft, sampler, steps, wanted, over)]),
                    stopping_criteria=StoppingCriteriaList([_Over(over)]),
                    eos_token_id=None,
                    pad_token_id=0,
                    **PLAIN,
                )
            steps.put(False)
        except BaseException as error:  # raised where the tokens are read
            steps.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while not draft.done:
            wanted.release()
            step = steps.get()
            if isinstance(step, BaseException):
                raise step
            if not step:
                return
            yield
    finally:
        over.set()
        wanted.release()
        thread.join()


class _Chosen(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Leaves nothing but the token that is chosen, once it is asked for."""

    def __init__(
        self,
        draft: Draft,
        sampler: Sampler,
        steps: queue.Queue[Any],
        wanted: threading.Semaphore,
        over: threading.Event,
    ) -> None:
        self._draft, self._sampler = draft, sampler
        self._steps, self._wanted, self._over = steps, wanted, over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._wanted.acquire()
        token = 0
        if not self._over.is_set():
            self._sampler.extend(scores, [self._draft])
            token = self._draft.written[-1]
            self._steps.put(True)
        only = torch.full_like(scores, float("-inf"))
        only[:, token] = 0
        return only


class _Over(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stop once nobody asks for more."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], self._over.is_set(), device=input_ids.device)
