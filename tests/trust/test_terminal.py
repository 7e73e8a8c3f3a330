"""What Python and its libraries print by themselves cannot act on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_lines import parse_training

EVIL = "\x1b[2J\x1b]0;owned\x07\u202e\u3164\u2800\U000e0041 http://me:pa55word@host"
ACTS = ("\x1b", "\x07", "\u202e", "\u3164", "\u2800", "\U000e0041", "pa55word")

SOURCES = {
    "a warning": "import warnings; warnings.warn(EVIL)",
    "a log record": "import logging; logging.getLogger('x').warning('%s', EVIL)",
    "of lightning": "import mmtune.common.torchvision_ops; from lightning.pytorch.utilities import rank_zero; "
    "rank_zero.rank_zero_warn(EVIL); rank_zero.rank_zero_info(EVIL)",
    "a log record with its traceback": "import logging\ntry: raise ValueError(EVIL)\n"
    "except ValueError: logging.getLogger('x').exception(EVIL)",
    "a traceback": "raise ValueError(EVIL)",
    "a traceback with its cause": "raise ValueError(EVIL) from KeyError(EVIL)",
    "a note": "error = ValueError(1); error.add_note(EVIL); raise error",
    "a thread": "import threading; t = threading.Thread(target=fail); t.start(); t.join()",
    "a finalizer": "X = type('X', (), {'__del__': fail}); x = X(); del x",
    "print": "import sys; print('a', EVIL, file=sys.stderr)",
    "print of a library": "import builtins, sys, textwrap; exec('print(EVIL); print(EVIL, file=sys.stderr)', "
    "{'EVIL': EVIL, 'sys': sys})",
    "a line above the evaluator's bar": "from mmtune.evaluation.run.progress import Reporter; Reporter().say(EVIL)",
    "a child": "import os, warnings\nif os.fork(): os.wait()\nelse: warnings.warn(EVIL)",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_what_is_printed_by_python_s_own_means_is_harmless(source: str) -> None:
    fail = f"EVIL = {EVIL!r}\ndef fail(*_): raise ValueError(EVIL)\n"
    code = f"from mmtune.cli.shared.terminal import guard; guard()\n{fail}{source}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert "␛[2J␛]0;owned␇⟨U+202E⟩⟨U+3164⟩⟨U+2800⟩⟨U+E0041⟩" in done.stderr
    assert not [sign for sign in ACTS if sign in done.stderr + done.stdout]


def test_the_command_guards_itself_with_debug_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmtune.cli.main", "data", str(tmp_path / f"{EVIL[:-25]}.json"), "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "␛[2J" in done.stderr
    assert not [sign for sign in ACTS if sign in done.stderr + done.stdout]


def test_a_config_is_printed_with_escapes_that_yaml_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = EVIL.partition(" ")[0]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": {"language": evil}, "data": {"train": {"text": [evil]}}}))
    with pytest.raises(SystemExit):
        parse_training(["fit", "--config", str(file), "--print_config"])
    printed = capsys.readouterr().out
    assert not [sign for sign in ACTS if sign in printed]
    assert yaml.safe_load(printed)["model"]["language"] == evil
