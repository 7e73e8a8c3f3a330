"""Restriction of the code that a config may name: a `class_path` is imported, and runs with the user's rights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jsonargparse import set_parsing_settings

from mmtune.common.errors import UserError

FLAG = "--trust_code"
_allowed: set[str] = set()  # names that the last call of `restrict_parsers` allowed


def restrict_parsers(names: Iterable[str] = ()) -> None:
    """Restrict the parsers of this process: configs are read from local files only, and only these names are imported.

    As soon as Lightning's command line is imported, parsers read configs from every address that fsspec supports.

    Args:
        names: dotted names of packages, modules or classes; a name includes everything in it.

    Raises:
        ValueError: a name is not a dotted name.
    """
    names = set(names)
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*", *(_allowed - names)],
        import_path_allowlist=sorted(names),
        # otherwise any class could be instantiated where a parameter has the type Any
        instantiate_subclass_spec_in_any=False,
    )
    _allowed.clear()
    _allowed.update(names)


def trusted_packages(argv: Sequence[str]) -> list[str]:
    """Return the packages that `--trust_code` names.

    The flag is read from the command line only: a config cannot declare itself trusted.

    Raises:
        UserError: a value is not a list of dotted names with commas between them.
    """
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    given = [word.partition("=")[2] if "=" in word else after for word, after in pairs if word.split("=")[0] == FLAG]
    packages = [name.strip() for value in given for name in value.split(",")]
    if not all(part.isidentifier() for name in packages for part in name.split(".")):
        raise UserError(f"{FLAG} {','.join(given)}: name packages as Python imports them, with commas between them")
    return packages


def not_trusted(place: str, path: str, argument: str = "") -> UserError:
    """Create the error for untrusted code that a config names.

    Args:
        place: the config or flag, and the key.
        path: dotted name of the code.
        argument: the argument that is not allowed; "" if the code itself is not on the list.
    """
    what = f"give {path} the argument {argument}" if argument else f"run {path}"
    return UserError(
        f"{place}: would {what}, which is not on the list of what a config may name; if you trust it, add "
        f"{FLAG} {path.partition('.')[0]}"
    )
