"""Conversion of library exceptions about invalid model files into error messages that name these files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmtune.common.errors import UserError
from mmtune.models.decoding.batches import is_out_of_memory


@contextmanager
def explaining(message: Callable[[Exception], UserError]) -> Iterator[None]:
    """Convert exceptions of libraries into a UserError; UserErrors and out-of-memory errors pass unchanged.

    transformers, tokenizers, peft and torch raise exceptions of nearly any type for an unexpected value in a JSON file,
    a pickle or a GGUF file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise message(error) from None
