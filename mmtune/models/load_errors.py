"""What libraries raise over files that others wrote, as messages about these files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmtune.common.errors import UserError
from mmtune.models.decoding.batches import is_out_of_memory


@contextmanager
def explaining(message: Callable[[Exception], UserError]) -> Iterator[None]:
    """Within, whatever a library raises becomes the message; messages of our own and lack of memory stay.

    transformers, tokenizers, peft and torch raise exceptions of nearly any kind over a value that they do not expect in
    a JSON file, a pickle or a GGUF file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise message(error) from None
