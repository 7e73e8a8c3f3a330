"""Parse a command line of `mmtune` as the command itself does, and go no further."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jsonargparse

from mmtune.cli import main as entry
from mmtune.common.errors import UserError


def parse_training(argv: list[str]) -> Any:
    """The command line object of `mmtune fit ...` or `mmtune validate ...`, parsed but not run.

    It goes through `mmtune.cli.train.main`, so shipped configs are found by name.

    Raises:
        UserError: the arguments do not parse.
    """
    from mmtune.cli import train

    parsed: list[Any] = []

    class ParsedOnly(train.TrainingCLI):
        def instantiate_classes(self) -> None:
            parsed.append(self)

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    with (
        mock.patch.object(train, "TrainingCLI", ParsedOnly),
        mock.patch.object(train, "finish", return_value=0),
    ):
        train.main(argv)
    return parsed[0]


class _Parsed(BaseException):
    """The arguments parse; the command must not go on."""


def check(argv: list[str]) -> None:
    """Parse `mmtune ARGV`, or say what is wrong with it.

    Raises:
        UserError: no such command or flag, or a value of the wrong type.
    """
    if not argv or argv[0].startswith("-"):
        unknown = set(argv) - {"-h", "--help", "--version", "--debug"}
        if unknown:
            raise UserError(f"mmtune itself has no {' '.join(sorted(unknown))}")
        return
    command, arguments = argv[0], [a for a in argv[1:] if a != "--debug"]
    if command in ("help", "version"):
        return
    if command not in entry.COMMANDS:
        raise UserError(f"mmtune has no command {command}")
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if command in ("fit", "validate"):
                parse_training([command, *arguments])
                return
            module = importlib.import_module(entry.COMMANDS[command][0])
            with _stopping_after_parsing():
                module.main(arguments)
    except _Parsed:
        return
    except SystemExit as stop:  # --help and --print_config end with 0
        if stop.code:
            raise UserError(output.getvalue()) from None
        return
    raise UserError(f"{module.__name__}.main did its work without parsing its arguments")


@contextlib.contextmanager
def _stopping_after_parsing() -> Iterator[None]:
    """Within, a parser that has parsed raises `_Parsed`."""

    def stopping(parse: Any) -> Any:
        def parse_and_stop(*args: Any, **kwargs: Any) -> Any:
            parse(*args, **kwargs)
            raise _Parsed

        return parse_and_stop

    with contextlib.ExitStack() as stack:
        for parser in (jsonargparse.ArgumentParser, argparse.ArgumentParser):
            stack.enter_context(mock.patch.object(parser, "parse_args", stopping(parser.parse_args)))
        yield
