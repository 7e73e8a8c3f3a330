"""Logits from hidden states by the language model's own code: with scales, soft caps and any other steps."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

LOGIT_ROWS = 256  # rows of logits, in float32, that are computed at once


class Head:
    """Last step of a language model, from hidden states to logits.

    Attributes:
        plain: whether this step is the output layer alone, which is then called directly.
    """

    def __init__(self, language: Any, body: str, *, plain: bool) -> None:
        """
        Args:
            language: a causal language model of transformers.
            body: name of its module that computes the hidden states.
            plain: whether the output layer alone follows the body.
        """
        self._language, self._body, self.plain = language, body, plain
        self._by_embeddings = "inputs_embeds" in inspect.signature(language.forward).parameters

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits [rows, vocabulary] of hidden states [rows, hidden], from any positions of any texts."""
        if self.plain:
            logits: torch.Tensor = self._language.get_output_embeddings()(hidden)
            return logits
        with _given(self._language, self._body, hidden[None]):
            if self._by_embeddings:
                out = self._language(inputs_embeds=hidden[None], use_cache=False)
            else:
                ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
                out = self._language(input_ids=ids, use_cache=False)
        return out.logits[0]


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]  # transformers is untyped here
    """Model output with hidden states only; every other attribute is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Substitute for a module that returns the given hidden states for any input."""

    def __init__(self, module: nn.Module, hidden: torch.Tensor) -> None:
        super().__init__()
        self.__dict__["_module"], self.__dict__["_hidden"] = module, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(last_hidden_state=self.__dict__["_hidden"])


@contextlib.contextmanager
def _given(language: Any, body: str, hidden: torch.Tensor) -> Iterator[None]:
    """Replace a language model's body by its known result within the context."""
    above, _, name = body.rpartition(".")
    holder = language.get_submodule(above)
    module = holder._modules[name]
    holder._modules[name] = _Given(module, hidden)
    try:
        yield
    finally:
        holder._modules[name] = module
