"""Messages and exit status at the end of `mmtune fit`: summary of the run, or the signal that stopped it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mmtune.common.files import read_json
from mmtune.common.signals import NAMES, stopped
from mmtune.common.text import visible
from mmtune.training.callbacks.stopping import received_signal


def report(run: Path, record: dict[str, Any]) -> None:
    """Print the summary of a run: steps, rows, tokens, directory, and rows that were changed or left out.

    Args:
        run: the run directory.
        record: record of the training data, as in RUN/data.json, which exists if any step was taken.
    """
    sources = record["sources"].values()
    text, visual = sum(s["text"] for s in sources), sum(s["visual"] for s in sources)
    drawn = f"drawn from {text:,} text and {visual:,} visual ones; {run}/"
    ledger = run / "ledger.json"
    if ledger.is_file():
        done = read_json(ledger)
        learnt = f"{done['samples']:,} rows ({done['tokens']['supervised']:,} tokens learnt from)"
        _say(f"{done['steps']} steps on {learnt}, {drawn}")
    else:
        _say(f"0 steps on no rows, {drawn}")
    markers = record["rows_spelling_markers"]
    if markers["count"]:
        _say(
            f"Rows with special tokens spelled in their text, which was read as those tokens: {markers['count']} "
            f"(all in {run}/data.json); the first: {markers['rows'][0]}"
        )
    trimmed = record["rows_with_answers_trimmed"]
    if trimmed["count"]:
        _say(
            f"Rows with answers whose first white space (indentation) the chat template does not write: "
            f"{trimmed['count']} (all in {run}/data.json); the first: {trimmed['rows'][0]}"
        )
    left_out = record["rows_with_answers_left_out"]
    if left_out["count"]:
        _say(
            f"Rows with earlier answers that are not learnt: {left_out['count']} (all in {run}/data.json), because "
            f"{left_out['because']}; the first: {left_out['rows'][0]}"
        )
    cut = record["cut_rows"]
    if cut["count"]:
        _say(f"Rows cut at --data.max_length: {cut['count']} (all in {run}/data.json); the first: {cut['rows'][0]}")
    skipped = record["bad_rows"]
    if skipped["count"]:
        rows = "1 row" if skipped["count"] == 1 else f"{skipped['count']} rows"
        _say(f"Left out {rows} that could not be used (all in {run}/data.json):")
        for message in skipped["messages"][:5]:
            _say(f"  {message}")


def _say(text: str) -> None:
    """Print a text that may quote rows and file names, with control characters made visible."""
    print(visible(text))


def finish(cli: LightningCLI) -> int:
    """Print the summary of a finished run, and return the exit status.

    It is 128 + the signal's number if a signal arrived when no step was left, so that the caller can stop; else 0.
    """
    if cli.trainer.is_global_zero:
        report(Path(cli.trainer.default_root_dir), cli.datamodule.record)
    number = received_signal(cli.trainer)
    if number is None:
        return 0
    rank_zero_only(print)(f"mmtune: {NAMES[signal.Signals(number)]} came when the run was finished", file=sys.stderr)
    return 128 + number


def stopped_beside_steps(number: int) -> int:
    """Print that a signal ended the run before, after or within a step; return the exit status."""
    rank_zero_only(stopped)(number, begin="the last checkpoint, if there is one")
    return 128 + number
