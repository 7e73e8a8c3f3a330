"""Safe terminal output of Python and its libraries: print, warnings, log records and tracebacks."""

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
    """Return a text that is safe to print: control and invisible characters are visible, and secrets are masked."""
    return visible(masked_text(text))


def guard() -> None:
    """Pass all text of print, warnings, log records and tracebacks through `shown`.

    It may quote configs, data and file names. Python's own hooks are replaced, so that libraries need no change, and
    forked processes inherit them.
    """
    builtins.print = _print_shown
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _show_exception
    sys.unraisablehook = lambda told: _show_exception(told.exc_type, told.exc_value, told.exc_traceback)
    threading.excepthook = lambda told: _show_exception(told.exc_type, told.exc_value, told.exc_traceback)


def _print_shown(*values: Any, file: Any = None, **options: Any) -> None:
    """Print safe text to stdout or stderr; colors and JSON are written to the stream directly, not printed."""
    if file is None or file in (sys.stdout, sys.stderr):
        values = tuple(shown(str(value)) for value in values)
    _print(*values, file=file, **options)


class _Record(logging.LogRecord):
    """Log record whose message and traceback are safe to print, for every handler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # a formatter uses this text if it is set, and does not format the exception itself
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
    if sys.stderr is not None and not issubclass(kind, SystemExit):  # a thread ends silently with it
        sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))
