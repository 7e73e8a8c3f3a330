"""Small copy of a language model with random weights, on which its ways of computing are tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmtune.common.errors import brief
from mmtune.models.decoding.batches import is_out_of_memory
from mmtune.models.fitness.result import UnfitError
from mmtune.models.fitness.shrinking import shrunk
from mmtune.models.pretrained import build_causal_model

_SMALL = 3_000_000  # maximum number of parameters of a model that is tried without shrinking
_MOST = 60_000_000  # maximum number of parameters of a small copy


def small_copy(config: Any) -> Any:
    """Build a small model of a config's kind, with random values in every parameter.

    Raises:
        UnfitError: none of the sizes that are tried gives a model of the same kinds of layers with finite logits.
        MemoryError: there is too little memory.
    """
    with torch.device("meta"):
        whole = build_causal_model(config)
    small = sum(parameter.numel() for parameter in whole.parameters()) <= _SMALL
    kinds = {type(module) for module in whole.modules()}
    del whole
    cuts = (1, 2, None)  # numbers of turns of layers; weights of one turn may be tied to those of the next
    attempts = [(None, None)] if small else [(heads, turns) for turns in cuts for heads in (2, 4, 8)]
    problem = ""
    for heads, turns in [*attempts, (None, 1)]:
        try:
            smaller = shrunk(config, heads=heads, turns=turns)
            if not small and _size(smaller) > _MOST:
                raise ValueError("it is too large")
            model = build_causal_model(smaller, dtype=torch.float32)
            if not kinds <= {type(module) for module in model.modules()}:
                raise ValueError("a kind of layer is lost")
            _spread(model.eval())
            with torch.no_grad():
                if not bool(model(input_ids=random_ids(3)[None], use_cache=False).logits.isfinite().all()):
                    raise ValueError("its logits are not finite")
        except Exception as error:  # transformers' code with untested sizes
            raise_fatal(error)
            problem = problem or error_text(error)
        else:
            return model
    raise UnfitError(f"no small copy of it can be tried ({problem})")


def _size(config: Any) -> int:
    """Return the number of parameters of a model of this config."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_causal_model(config).parameters())


def _spread(model: nn.Module) -> None:
    """Randomize every parameter, so that each part of the model affects the output."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.empty_like(parameter).normal_(generator=generator)
            inputs = _inputs(module, name, parameter)
            with torch.no_grad():
                parameter.copy_(drawn * inputs**-0.5) if inputs else parameter.add_(0.2 * drawn)


def _inputs(module: nn.Module, name: str, parameter: torch.Tensor) -> int:
    """Return the fan-in of a weight that is drawn anew, or 0 for a parameter that only gets noise added."""
    if isinstance(module, nn.Embedding):
        return 1
    if isinstance(module, nn.Linear) and name == "weight":
        return parameter.shape[1]
    if type(module).__name__ == "Conv1D" and name == "weight":
        return parameter.shape[0]
    return max(parameter.shape[1:]) if parameter.ndim == 3 and min(parameter.shape[1:]) > 4 else 0  # experts


def random_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids [length], none of them special."""
    return torch.randint(10, 100, (length,), generator=torch.Generator().manual_seed(1000 * seed + length))


def error_text(error: Exception) -> str:
    """Return the type and the beginning of the message of an exception."""
    return f"{type(error).__name__}: {brief(' '.join(str(error).split()), 120)}"


def raise_fatal(error: Exception) -> None:
    """Raise an out-of-memory error again, since it says nothing about the model; ignore other errors.

    Raises:
        MemoryError: the error was a lack of memory.
    """
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        raise MemoryError(error_text(error))
