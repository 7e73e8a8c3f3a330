"""Which code a config may name: a `class_path` is imported, and what is made of it runs with the user's rights."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import set_parsing_settings

from mmtune.errors import UserError

FLAG = "--trust_code"
# enough for all that a trainer takes; not torch as a whole, which can load and build code of its own
_TRUSTED = ["lightning", "mmtune", "torch.distributed", "torch.nn", "torch.optim"]


def restrict_imports(argv: Sequence[str]) -> None:
    """Let the parsers of this process import nothing but the trainer's own classes, and what `--trust_code` names.

    The flag is read from the command line alone: a config cannot vouch for itself.

    Raises:
        UserError: the flag names no packages.
    """
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    given = [word.partition("=")[2] if "=" in word else after for word, after in pairs if word.split("=")[0] == FLAG]
    packages = [name.strip() for value in given for name in value.split(",")]
    try:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=_TRUSTED + packages,
            # else any class could be made wherever a library asks for any value
            instantiate_subclass_spec_in_any=False,
        )
    except ValueError:
        raise UserError(
            f"{FLAG} {','.join(given)}: name packages as Python imports them, with commas between them"
        ) from None
