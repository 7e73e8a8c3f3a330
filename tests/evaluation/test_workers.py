"""Several processes share an evaluation, and one that fails ends all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_models import SUITE, small_data
from test_kill import samples, without_times

from mmtune.common.errors import UserError
from mmtune.evaluation.run.workers import PeerError, Workers, join

KILLABLE = str(Path(__file__).with_name("killable.py"))
PARTS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SUITE)
    return small_data(tmp_path)


def test_two_processes_find_what_one_finds(data: Path, tmp_path: Path, tuned_model: Path) -> None:
    flags = ["--model", tuned_model, "--suite", data / "small.yaml", "--data-root", data]
    one = run([sys.executable, "-m", "mmtune.cli.main", "eval", *flags, "--out", tmp_path / "one", "--device", "cpu"])
    two = run([*PARTS, "-m", "mmtune.cli.main", "eval", *flags, "--out", tmp_path / "two", "--device", "cpu"])
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert without_times(tmp_path / "two") == without_times(tmp_path / "one")
    assert samples(tmp_path / "two") == samples(tmp_path / "one")
    assert two.stdout.count("average, language") == 1
    assert two.stderr.count("boolq: 10 rows") == 1


def test_the_work_is_shared_and_can_be_done_again(data: Path, tmp_path: Path) -> None:
    run([sys.executable, KILLABLE, data, data / "small.yaml", tmp_path / "one", tmp_path / "log"])
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    script = f'exec {sys.executable} {KILLABLE} "$0" "$1" "$2" "$3$RANK" $4'
    command = [*PARTS, "--no-python", "sh", "-c", script, data, data / "small.yaml", tmp_path / "two", tmp_path / "log"]
    assert run(command).returncode == 0
    asked = [log.read_text().splitlines() for log in logs]
    assert all(asked), "one has asked nothing"
    assert sorted(asked[0] + asked[1]) == sorted((tmp_path / "log").read_text().splitlines())
    assert without_times(tmp_path / "two") == without_times(tmp_path / "one")
    assert samples(tmp_path / "two") == samples(tmp_path / "one")

    assert run([*command, "resume=false"]).returncode == 0
    assert sum(len(log.read_text().splitlines()) for log in logs) == 2 * 28


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--tasks", "bolq"], "--tasks: 'bolq' is not in suite small"),
        (["--seeed", "1"], "--help lists the flags"),
    ],
)
def test_a_mistake_is_told_once(data: Path, tmp_path: Path, llama: Path, mistake: list[str], message: str) -> None:
    flags = ["--model", llama, "--suite", data / "small.yaml", "--data-root", data, "--out", tmp_path / "out", *mistake]
    codes = f'{sys.executable} -m mmtune.cli.main eval "$@"; echo $? > {tmp_path}/code$RANK'
    done = run([*PARTS, "--no-python", "sh", "-c", codes, "eval", *flags])
    assert [(tmp_path / f"code{rank}").read_text().strip() for rank in range(2)] == ["2", "2"]
    assert done.stderr.count("mmtune: error: ") == 1
    assert message in done.stderr


class Fake:
    """What `Workers` uses of a `torch.distributed.Store`."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.gone = False

    def add(self, name: str, amount: int) -> int:
        if self.gone:
            raise RuntimeError("Connection reset by peer")
        # both processes of a test live in this one, where each counts its own groups
        name = name.split("/", 2)[2]
        self.counters[name] = self.counters.get(name, 0) + amount
        return self.counters[name]


@pytest.fixture
def pair() -> tuple[Workers, Workers, Fake]:
    store = Fake()
    return Workers(0, 2, store), Workers(1, 2, store), store


def test_every_ticket_goes_to_one(pair: tuple[Workers, Workers, Fake]) -> None:
    first, second = (workers.tickets("task", 7) for workers in pair[:2])
    drawn = [next(first), next(second), next(second), next(first), *second]
    assert drawn == list(range(7))
    assert list(first) == []
    assert list(Workers().tickets("task", 3)) == [0, 1, 2]


def test_an_error_ends_the_others_at_their_next_step(pair: tuple[Workers, Workers, Fake]) -> None:
    first, second, _ = pair
    tickets = first.tickets("task", 7)
    next(tickets)
    with pytest.raises(UserError, match="the photo"), second.failing_together():
        raise UserError("the photo")
    with pytest.raises(PeerError), first.failing_together():
        next(tickets)
    with pytest.raises(PeerError):
        first.wait_until(lambda: False)
    with pytest.raises(PeerError), first.failing_together():  # the same mistake, found by both
        raise UserError("the photo")


def test_processes_that_are_gone_are_not_waited_for(pair: tuple[Workers, Workers, Fake]) -> None:
    first, _, store = pair
    store.gone = True
    with pytest.raises(PeerError, match="have ended"):
        first.barrier("here")


def test_a_process_alone_needs_nobody() -> None:
    alone = join()
    assert (alone.rank, alone.count) == (0, 1)
    alone.barrier("here")
    with pytest.raises(ValueError, match="mine"), alone.failing_together():
        raise ValueError("mine")


def test_processes_on_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--nnodes 1"):
        join()


def test_processes_that_cannot_find_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"cannot find each other .*use torchrun"):
        join()
