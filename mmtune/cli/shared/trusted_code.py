"""Which code a config may name: a `class_path` is imported, and what is made of it runs with the user's rights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jsonargparse import set_parsing_settings

from mmtune.common.errors import UserError

FLAG = "--trust_code"
_allowed: set[str] = set()  # by the last call of `restrict_parsers`


def restrict_parsers(names: Iterable[str] = ()) -> None:
    """Let the parsers of this process read configs from local files alone, and import what is named here alone.

    Lightning's command line lets them read from every address that fsspec knows, as soon as it is imported.

    Args:
        names: packages, modules or classes, dotted; a name stands for all that is in it.

    Raises:
        ValueError: one is no dotted name.
    """
    names = set(names)
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*", *(_allowed - names)],
        import_path_allowlist=sorted(names),
        # else any class could be made wherever a library asks for any value
        instantiate_subclass_spec_in_any=False,
    )
    _allowed.clear()
    _allowed.update(names)


def trusted_packages(argv: Sequence[str]) -> list[str]:
    """What `--trust_code` names.

    The flag is read from the command line alone: a config cannot vouch for itself.

    Raises:
        UserError: it names no packages.
    """
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    given = [word.partition("=")[2] if "=" in word else after for word, after in pairs if word.split("=")[0] == FLAG]
    packages = [name.strip() for value in given for name in value.split(",")]
    if not all(part.isidentifier() for name in packages for part in name.split(".")):
        raise UserError(f"{FLAG} {','.join(given)}: name packages as Python imports them, with commas between them")
    return packages


def not_trusted(place: str, path: str, argument: str = "") -> UserError:
    """The refusal of code that a config names.

    Args:
        place: the config or flag, and the key.
        path: the dotted name of the code.
        argument: the one that it would be given; "" where the code itself is not on the list.
    """
    what = f"give {path} the argument {argument}" if argument else f"run {path}"
    return UserError(
        f"{place}: would {what}, which is not on the list of what a config may name; if you trust it, add "
        f"{FLAG} {path.partition('.')[0]}"
    )
