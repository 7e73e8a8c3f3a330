"""Command-line flags from a typed dataclass, whose docstring becomes the help."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from mmtune.cli.shared.flag_errors import reworded, unreadable
from mmtune.cli.shared.trusted_code import restrict_parsers
from mmtune.common.errors import UserError

Options = TypeVar("Options")


class OneLineParser(ArgumentParser):
    """Parser with error messages of one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise an error, in place of printing the usage and exiting.

        Raises:
            UserError: always.
        """
        raise UserError(f"{reworded(message, self, self.args)} ({self.prog} --help lists the flags)") from ex


def build_parser(
    command: str, options: type[Any], *, positional: str | None = None, short: Mapping[str, str] | None = None
) -> OneLineParser:
    """Build a parser with a flag for every field of a dataclass.

    `data_root` becomes `--data-root`; a field `resume: bool` becomes `--resume` and `--no-resume`; a field without a
    default is required.

    Args:
        command: the command's name.
        options: the dataclass; the first line of its docstring describes the command, its `Attributes` the flags.
        positional: the field that is given without a flag: a list of at least one text.
        short: a second, short flag by field, such as `-o`.
    """
    text = docstring_parser.parse(options.__doc__ or "")
    helps = {parameter.arg_name: parameter.description for parameter in text.params}
    hints = get_type_hints(options)
    parser = OneLineParser(prog=f"mmtune {command}", description=text.short_description, allow_abbrev=False)
    for field in dataclasses.fields(options):
        flag = f"--{field.name.replace('_', '-')}"
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = {} if required else {"default": _default(field)}
        if field.name == positional:
            parser.add_argument(field.name, nargs="+", type=str, help=helps.get(field.name))
        elif hints[field.name] is bool:
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), help=helps.get(field.name), **default)
        else:
            flags = [short[field.name], flag] if short and field.name in short else [flag]
            parser.add_argument(
                *flags, type=hints[field.name], help=helps.get(field.name), required=required, **default
            )
    return parser


def parse(parser: OneLineParser, options: type[Options], argv: list[str]) -> Options:
    """Parse arguments into the dataclass.

    Raises:
        UserError: an unknown or missing flag, or a value of the wrong type.
    """
    restrict_parsers()
    try:
        values = parser.parse_args(argv).as_dict()
    except (ValueError, OverflowError) as error:
        raise UserError(unreadable(argv, error)) from None
    return options(**values)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
