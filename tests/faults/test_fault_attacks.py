"""`make faults` in small: kills before any change on the disk, attacks on the fastest command; losses are seen."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_attacks import Outcome, table
from fault_commands import differences, negative_durations, results, strays
from fault_processes import limiting_file_size, signal_before_disk_operation, start

from mmtune.common.files import atomic_path, write_json
from mmtune.training.checkpoint_io import WholeCheckpoints

SCRIPT = Path(__file__).with_name("run_faults.py")


def _json_file(target: Path) -> None:
    write_json(target / "a.json", {"new": 1})


def _folder(target: Path) -> None:
    with atomic_path(target / "model") as folder:
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "weights").write_text("new")


def _checkpoint(target: Path) -> None:
    WholeCheckpoints().save_checkpoint({"new": 1}, target / "last.ckpt")


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("write", [_json_file, _folder, _checkpoint])
def test_killed_before_any_change_on_the_disk(
    write: Callable[[Path], None], there_before: bool, tmp_path: Path
) -> None:
    """What has its final name is whole, and the next that writes it clears away the rest."""
    write(tmp_path / "whole" / "out")
    whole = results(tmp_path / "whole")
    for number in itertools.count(1):
        place = tmp_path / f"place-{number}"
        (place / "out").mkdir(parents=True)
        if there_before:
            write(place / "out")
        strike = signal_before_disk_operation(place, number, signal.SIGKILL)
        ended = start(lambda out=place / "out": write(out), tmp_path / "log", prepare=[strike]).end()
        found = results(place)
        assert all(whole[name.replace("previous", "last")] == digest for name, digest in found.items())
        assert len(found) in (0, len(whole), 2 * len(whole) if write is _checkpoint else 0)
        write(place / "out")
        assert {name: digest for name, digest in results(place).items() if "previous" not in name} == whole
        assert strays(place) == []
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.said
    assert number > 2


@pytest.mark.slow
def test_a_few_attacks_are_survived(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--seed", "3", "--table", str(tmp_path / "table.md")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[-1].replace("*", "").split("|")[3:6] == [" 7 ", " 7 ", " 0 "]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.md"]


def test_what_is_lost_is_seen(tmp_path: Path) -> None:
    whole, place = tmp_path / "whole", tmp_path / "place"
    for folder in (whole, place):
        (folder / "out" / "model").mkdir(parents=True)
        (folder / "out" / "model" / "a").write_text(f"in {folder}")  # the place's own name is no difference
        (folder / "cache").mkdir()
        with zipfile.ZipFile(folder / "out" / "t.zip", "w") as archive:
            archive.writestr("a", "a")
    expected = results(whole)
    assert differences(results(place), expected) == ""
    (place / "out" / "model" / "a").write_text("half")
    (place / "out" / "t.zip").unlink()
    (place / "cache" / "x.arrow").write_text("not what its name says")
    assert results(place)["cache/x.arrow"] == "damaged"
    assert differences(results(place), expected) == (
        "out/t.zip is missing; cache/x.arrow should not be there; out/model/a differs"
    )
    (place / "out" / ".model.abc").mkdir()
    (place / "out" / ".lock").touch()
    assert strays(place) == ["out/.model.abc"]
    (place / "out" / "ledger.json").write_text(json.dumps({"wall_s": -3.0, "train_s": 2.0}))
    assert negative_durations(place) == ["out/ledger.json: wall_s -3.0"]


def test_a_process_is_struck_where_it_was_meant_to_be(tmp_path: Path) -> None:
    def work() -> int:
        for number in range(5):
            (tmp_path / str(number)).write_text("x" * 100)
        return 3

    strike = signal_before_disk_operation(tmp_path, 4, signal.SIGKILL)
    log = tmp_path.with_suffix(".log")
    assert start(work, log, prepare=[strike]).end().status == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert start(work, log).end().status == 3
    ended = start(work, log, prepare=[limiting_file_size(50)]).end()
    assert ended.status == 1
    assert "File too large" in ended.said
    assert ended.error == ""


def test_the_table_counts() -> None:
    outcome = Outcome("`SIGKILL`", "`fit`")
    outcome.note("")
    outcome.note("something differs")
    assert "| `SIGKILL` | `fit` | 2 | 1 | 1 |" in table([outcome])
