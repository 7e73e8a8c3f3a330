"""Entry point of the `mmtune` command; large libraries are imported only after a command is chosen."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings

from mmtune.cli.shared.terminal import guard, shown
from mmtune.common import disk
from mmtune.common.errors import UserError, did_you_mean
from mmtune.common.masking import remember_arguments
from mmtune.common.version import __version__

COMMANDS = {
    "quickstart": ("mmtune.cli.quickstart", "tune and score a small real model on this machine, in minutes"),
    "fit": ("mmtune.cli.train", "train: align a projector or tune on instructions (Lightning CLI)"),
    "validate": ("mmtune.cli.train", "measure the loss of a saved model on a validation set (Lightning CLI)"),
    "eval": ("mmtune.cli.evaluate", "score a model zero-shot on a suite of language and vision sets"),
    "chat": ("mmtune.cli.chat", "talk to a model, about photos too: in the terminal, or two side by side in a page"),
    "compare": ("mmtune.cli.compare", "compare evaluations sample by sample: differences, intervals, what flipped"),
    "report": ("mmtune.cli.report", "one page about runs: scores beside cost, losses, settings, answers to search"),
    "plan": ("mmtune.cli.plan", "what a run will take, before it is begun: tokens, operations, memory, time"),
    "reproduce": (
        "mmtune.cli.reproduce",
        "the paper's comparison in one command: cost beside score, variant by variant",
    ),
    "export": ("mmtune.cli.export", "write a trained model for transformers, peft and what builds on them"),
    "data": ("mmtune.cli.data", "show what training will see of your files"),
}


def usage() -> str:
    """Return the help of `mmtune` itself, with the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"mmtune {__version__}: tune vision-language models on text, and measure what it buys and costs",
            "",
            "usage: mmtune COMMAND [options]        mmtune COMMAND --help",
            "",
            *lines,
            "",
            "  --debug shows the traceback of an error; --version the version",
        ]
    )


def quieten_libraries() -> None:
    """Set environment variables that suppress progress bars, advice and warnings of libraries imported later."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(argv: list[str] | None = None) -> int:
    """Run a command, and print errors that the user can fix in one line; any other exception is raised.

    With `--debug`, errors that the user can fix are raised as well.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        Exit status: that of the command; 2 after an error that the user can fix, also one of the disk; 130 after
        Ctrl-C; 0 if the reader of the output closed the pipe.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    guard()
    remember_arguments(arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0
        if arguments[0] in ("--version", "version"):
            print(__version__)
            return 0
        command = arguments[0]
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}; {did_you_mean(command, COMMANDS)}")
        quieten_libraries()
        # peft reads this attribute of transformers, which warns that it is deprecated
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an unused 4-bit kernel for CPUs
        module = importlib.import_module(COMMANDS[command][0])
        return int(module.main(arguments if command in ("fit", "validate") else arguments[1:]))
    except UserError as error:
        if debug:
            raise
        return _report(str(error))
    except BrokenPipeError:
        # the reader of the output (head, less) closed the pipe; Python's own flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        found = disk.trouble(error)
        if debug or found is None:
            raise
        return _report(disk.advice(found))
    except KeyboardInterrupt:
        print("mmtune: interrupted", file=sys.stderr)
        return 130


def _report(message: str) -> int:
    print(f"mmtune: error: {shown(' '.join(message.split()))}", file=sys.stderr)  # it may quote data
    return 2


if __name__ == "__main__":
    sys.exit(main())
