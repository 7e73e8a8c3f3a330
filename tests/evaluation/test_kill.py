"""An evaluation that is killed at any moment goes on where it stopped."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scripted_models import SUITE, small_data

PROGRAM = [sys.executable, str(Path(__file__).with_name("killable.py"))]
ROWS = 28


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    small_data(tmp_path)
    (tmp_path / "small.yaml").write_text(SUITE)
    return [*PROGRAM, str(tmp_path), str(tmp_path / "small.yaml")]


def asked(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def stored(out: Path) -> int:
    if not (out / "answers.sqlite").exists():
        return 0
    with closing(sqlite3.connect(out / "answers.sqlite")) as connection:
        tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name='answers'").fetchone()[0]
        return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0]) if tables else 0


def without_times(out: Path) -> dict[str, Any]:
    """results.json but for what the clock decides."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    del results["created"], results["cost"]["seconds"]
    for task in results["tasks"].values():
        del task["seconds"], task["cost"]["seconds"]
    return results


def samples(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "samples").iterdir()}


def test_kill_9_loses_and_repeats_nothing(command: list[str], tmp_path: Path) -> None:
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    subprocess.run([*command, whole, tmp_path / "whole.log"], check=True, timeout=120)
    assert len(asked(tmp_path / "whole.log")) == ROWS

    for after in (1, 6, 9, 3):  # questions into the process: within a chunk, and about where one is stored
        before, begun = len(asked(log)), stored(killed)
        process = subprocess.Popen([*command, killed, log])
        while len(asked(log)) < before + after and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert begun <= stored(killed) < ROWS

    missing = ROWS - stored(killed)
    before = len(asked(log))
    subprocess.run([*command, killed, log], check=True, timeout=120)
    assert len(asked(log)) - before == missing, "asks what is not stored, and nothing else"
    assert without_times(killed) == without_times(whole)
    assert samples(killed) == samples(whole)


def test_two_at_once_in_one_folder_do_no_harm(command: list[str], tmp_path: Path) -> None:
    whole, both = tmp_path / "whole", tmp_path / "both"
    subprocess.run([*command, whole, tmp_path / "log"], check=True, timeout=120)
    running = [subprocess.Popen([*command, both, tmp_path / f"log{n}"]) for n in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert without_times(both) == without_times(whole)
    assert samples(both) == samples(whole)
