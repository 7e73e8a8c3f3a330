"""What Python and its libraries print by themselves, made harmless: print, warnings, log records and tracebacks."""

from __future__ import annotations

import builtins
import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any, TextIO

from mmtune.common.masking import masked_text
from mmtune.common.text import visible

_print = builtins.print


def shown(text: str) -> str:
    """A text as it may be printed: nothing in it acts on the terminal or hides, and secrets are masked."""
    return visible(masked_text(text))


def guard() -> None:
    """Have all that is printed by Python's own means quote configs, data and names of files as `shown`.

    These are its hooks, so that libraries need not know, and processes that are forked have them too.
    """
    builtins.print = _print_shown
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _show_exception
    sys.unraisablehook = lambda told: _show_exception(told.exc_type, told.exc_value, told.exc_traceback)
    threading.excepthook = lambda told: _show_exception(told.exc_type, told.exc_value, told.exc_traceback)


def _print_shown(*values: Any, file: Any = None, **options: Any) -> None:
    """Print; what is made for a terminal on purpose (colors, JSON for programs) is written to the stream instead."""
    if file is None or file in (sys.stdout, sys.stderr):
        values = tuple(shown(str(value)) for value in values)
    _print(*values, file=file, **options)


class _Record(logging.LogRecord):
    """A record whose message and traceback are harmless, whatever handler writes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # a formatter takes this rather than format the exception itself
            self.exc_text = shown("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:  # noqa: N802  # logging's own name
        return shown(super().getMessage())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    stream = file or sys.stderr
    if stream is not None:  # pythonw has none
        stream.write(shown(warnings.formatwarning(message, category, filename, lineno, line)))


def _show_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, /) -> None:
    if sys.stderr is not None and not issubclass(kind, SystemExit):  # of which a thread says nothing
        sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))
