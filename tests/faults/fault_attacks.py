"""What is done to the commands, and whether they get over it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fault_commands import Command, differences, negative_durations, results, strays
from fault_processes import (
    Ended,
    Prepare,
    Running,
    counting_disk_operations,
    jumping_clock,
    limiting_file_size,
    signal_before_disk_operation,
    start_command,
)

_AGAIN = 4  # how often the same command is given before it counts as lost
_WAIT_FOR_ORPHANS = 120.0  # seconds for steps of a killed comparison to end


@dataclass
class Outcome:
    """A row of the table.

    Attributes:
        attack: what was done.
        command: to what.
        tried: how often.
        problems: what was lost, once each.
        remarks: what was seen, with how often.
    """

    attack: str
    command: str
    tried: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)

    def note(self, problem: str, remark: str = "") -> None:
        """Count a try, with what was lost by it or nothing."""
        self.tried += 1
        if problem:
            self.problems.append(problem)
        if remark:
            self.remarks[remark] = self.remarks.get(remark, 0) + 1


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it left, and how long and how much it was."""

    results: dict[str, str]
    seconds: float
    operations: int
    size: dict[str, int]
    largest: int


class Siege:
    """Attacks commands in one world.

    Args:
        world: made by `build_world`, with a trained model as `run`.
        work: a folder for the places in which commands run; each is deleted after its attack.
        seed: of every moment that is chosen.
    """

    def __init__(self, world: Path, work: Path, seed: int) -> None:
        self.world, self.work, self.draw = world, work, random.Random(seed)
        self._references: dict[str, Reference] = {}
        self._places = 0

    def reference(self, command: Command) -> Reference:
        """The undisturbed run of a command, done once."""
        if command.name not in self._references:
            with self._place() as place:
                count = self._logs / f"{place.name}-operations"
                ended = self._start(command, place, counting_disk_operations(place / command.area, count)).end()
                assert ended.status == 0, ended.said
                operations = count.stat().st_size
                files = [file for file in place.rglob("*") if file.is_file()]
                size = {part: _footprint(place / part) for part in ("out", "cache")}
                largest = max(file.stat().st_size for file in files)
                self._references[command.name] = Reference(results(place), ended.seconds, operations, size, largest)
        return self._references[command.name]

    def signals(self, command: Command, number: int, times: int) -> Outcome:
        """Send a signal: by turns at a random time, and before a random change on the disk."""
        outcome, whole = Outcome(f"`{signal.Signals(number).name}`", command.name), self.reference(command)
        for turn in range(times):
            share = (turn + self.draw.random()) / times
            with self._place() as place:
                if turn % 2:
                    chosen = 1 + int(share * whole.operations)
                    strike = signal_before_disk_operation(place / command.area, chosen, number)
                    moment = f"before disk operation {chosen} of {whole.operations}"
                    ended = self._start(command, place, strike).end()
                else:
                    moment = f"after {share * whole.seconds:.2f} s of {whole.seconds:.2f}"
                    ended = self._strike_after(command, place, share * whole.seconds, number)
                problem = "" if ended.status in _ends(number) else f"exit status {ended.status}: {ended.said[-300:]}"
                problem = problem or self._go_on(command, place)
                outcome.note(problem and f"{moment}: {problem}", "" if ended.status else "had ended before")
        return outcome

    def one_run(self, command: Command, strikes: Sequence[tuple[int, bool]], *, disks: bool) -> list[Outcome]:
        """Strike the same run again and again, for one that takes minutes; what it ends with counts for each strike.

        Args:
            command: the command.
            strikes: signals, and whether all of its processes get them or the first alone.
            disks: whether it is given a disk that may not be written to first, and then a full one.
        """
        whole, found = self.reference(command), list[Outcome]()

        def note(attack: str, ended: Ended, statuses: set[int]) -> None:
            fine = ended.status in statuses or (ended.status == 2 and ended.error != "")
            found.append(Outcome(attack, command.name))
            found[-1].note("" if fine else f"exit status {ended.status}: {ended.said[-700:]}")

        with self._place() as place, contextlib.ExitStack() as stack:
            if disks:
                remount = stack.enter_context(_disk(place / "out", 2**30))
                for attack, options in (
                    ("read-only disk below `out`", "ro"),
                    ("full disk below `out`", f"rw,size={whole.size['out'] // 3}"),
                ):
                    remount(options)
                    note(attack, self._start(command, place).end(), set())
                remount("size=1g")
            first = self._start(command, place)
            assert first.wait(whole.seconds / 10) is None
            note("two at once, same output", self._start(command, place, log="second").end(), set())
            first.signal(signal.SIGKILL)
            first.end()
            for number, group in strikes:
                seconds = (0.1 + 0.9 * self.draw.random()) * whole.seconds / (1 + len(strikes) / 2)
                whom = "" if group else " to the first process alone"
                ended = self._strike_after(command, place, seconds, number, group=group)
                note(f"`{signal.Signals(number).name}`{whom}", ended, _ends(number))
            if problem := self._go_on(command, place):
                for outcome in found:
                    outcome.problems = outcome.problems or [problem]
        return _together(found)

    def full_disk(self, command: Command, part: str, shares: Sequence[float]) -> Outcome:
        """Give `out` or `cache` a disk of its own with a share of the room that it takes; then more."""
        whole = self.reference(command)
        outcome = Outcome(f"full disk below `{part}`", command.name)
        for share in shares:
            size = max(4096, int(share * whole.size[part]))
            with self._place() as place, _disk(_mount_point(command, place, part), size) as remount:
                outcome.note(*self._obstructed(command, place, part, lambda: remount("size=1g")))
        return outcome

    def limited_files(self, command: Command, shares: Sequence[float]) -> Outcome:
        """Let no file grow beyond a share of the largest."""
        outcome, whole = Outcome("no file may grow further", command.name), self.reference(command)
        for share in shares:
            with self._place() as place:
                limit = limiting_file_size(int(share * whole.largest))
                outcome.note(*self._obstructed(command, place, "out", lambda: None, limit))
        return outcome

    def read_only(self, command: Command, part: str) -> Outcome:
        """A disk that may not be written to below `out` or `cache`; then it may."""
        outcome = Outcome(f"read-only disk below `{part}`", command.name)
        self.reference(command)
        with self._place() as place, _disk(_mount_point(command, place, part), 2**30) as remount:
            remount("ro")
            outcome.note(*self._obstructed(command, place, part, lambda: remount("rw")))
        return outcome

    def in_the_way(self, command: Command, part: str) -> Outcome:
        """A file where `out` or `cache` should be; then it is deleted."""
        outcome = Outcome(f"a file in place of `{part}`", command.name)
        self.reference(command)
        with self._place() as place:
            obstacle = place / part
            obstacle.rmdir() if obstacle.is_dir() else None
            obstacle.write_text("in the way")
            outcome.note(*self._obstructed(command, place, part, obstacle.unlink))
        return outcome

    def two_at_once(self, command: Command, times: int) -> Outcome:
        """The same command twice on the same output."""
        outcome, whole = Outcome("two at once, same output", command.name), self.reference(command)
        for _ in range(times):
            with self._place() as place:
                first = self._start(command, place)
                time.sleep(self.draw.random() * whole.seconds * 0.5)
                second = self._start(command, place, log="second")
                both = [first.end(), second.end()]
                refused = [ended for ended in both if ended.status == 2]
                fine = all(ended.status == 0 or (ended.status == 2 and ended.error) for ended in both)
                problem = (
                    "" if fine and len(refused) < 2 else " and ".join(f"{e.status}: {e.said[-400:]}" for e in both)
                )
                problem = problem or differences(results(place), whole.results) or _stray(place)
                outcome.note(problem, "one refused" if refused else "both ended right")
        return outcome

    def shared_cache(self, command: Command, times: int) -> Outcome:
        """The same command twice, with an output each and one cache that is still empty."""
        outcome, whole = Outcome("two at once, same cache", command.name), self.reference(command)
        for _ in range(times):
            with self._place() as place, self._place() as other:
                first = self._start(command, place)
                time.sleep(self.draw.random() * whole.seconds * 0.3)
                second = self._start(command, other, cache=place / "cache")
                both = [first.end(), second.end()]
                problem = "; ".join(ended.said[-400:] for ended in both if ended.status)
                own = {name: value for name, value in whole.results.items() if name.startswith("out/")}
                problem = problem or differences(results(place), whole.results) or differences(results(other), own)
                outcome.note(problem or _stray(place), "both ended right")
        return outcome

    def clock(self, command: Command, times: int) -> Outcome:
        """A time of day that jumps; killed on the way, its files then dated forty years on or back."""
        outcome, whole = Outcome("clock that jumps, and `SIGKILL`", command.name), self.reference(command)
        for turn in range(times):
            with self._place() as place:
                chosen = 1 + int(self.draw.random() * whole.operations)
                strike = signal_before_disk_operation(place / command.area, chosen, signal.SIGKILL)
                self._start(command, place, jumping_clock(self.draw.randrange(2**31)), strike).end()
                moment = time.time() + (1.2e9 if turn % 2 else -1.2e9)
                for file in place.rglob("*"):
                    os.utime(file, (moment, moment))
                problem = self._go_on(command, place, jumping_clock(self.draw.randrange(2**31)))
                outcome.note(problem or "; ".join(negative_durations(place)))
        return outcome

    def _obstructed(
        self, command: Command, place: Path, part: str, remove: Callable[[], object], *prepare: Prepare
    ) -> tuple[str, str]:
        """Run into an obstacle, which must be said in one line, and once more when it is gone: problem and remark."""
        ended = self._start(command, place, *prepare).end()
        if ended.status == 0 and ("not kept" in ended.said or "not stored" in ended.said):
            return "", "went on without a cache, and said so"  # photos that are not stored round in other ways
        if ended.status == 0:
            remove()
            return self._go_on(command, place), "had room enough"
        if ended.status != 2 or not ended.error:
            return f"exit status {ended.status}: {ended.said[-700:]}", ""
        left = [name for name in strays(place) if "sqlite" not in name]  # SQLite's log of what it has not written yet
        remove()
        return (f"left lying: {', '.join(left[:4])}" if left else "") or self._go_on(command, place), "exit 2, one line"

    def _go_on(self, command: Command, place: Path, *prepare: Prepare) -> str:
        """Give the same command again; what is wrong with what it ends with, or nothing."""
        whole, deadline = self.reference(command), time.monotonic() + _WAIT_FOR_ORPHANS
        for _ in range(_AGAIN):
            ended = self._start(command, place, *prepare).end()
            while _is_held(ended) and time.monotonic() < deadline:
                time.sleep(1)
                ended = self._start(command, place, *prepare).end()
            if ended.status == 0 or (command.finished and command.finished in ended.error):
                return differences(results(place), whole.results) or _stray(place)
            if ended.status == 2:
                break
        return f"the same command again: exit status {ended.status}: {ended.said[-700:]}"

    def _strike_after(self, command: Command, place: Path, seconds: float, number: int, *, group: bool = True) -> Ended:
        running = self._start(command, place)
        if (ended := running.wait(seconds)) is not None:
            return ended
        running.signal(number, group=group)
        return running.end()

    def _start(
        self, command: Command, place: Path, *prepare: Prepare, log: str = "first", cache: Path | None = None
    ) -> Running:
        before = [command.prepare(self.world)] if command.prepare else []
        arguments = command.arguments(self.world, place)
        logs = self._logs / f"{place.name}-{log}"
        return start_command(arguments, logs, cache=cache or place / "cache", prepare=[*before, *prepare])

    @cached_property
    def _logs(self) -> Path:
        logs = self.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        self._places += 1
        place = self.work / f"place-{self._places}"
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _together(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome an attack."""
    found: dict[str, Outcome] = {}
    for one in outcomes:
        row = found.setdefault(one.attack, Outcome(one.attack, one.command))
        row.tried += one.tried
        row.problems += one.problems
    return list(found.values())


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = ["| what was done | to | tried | survived | lost | seen |", "|---|---|---:|---:|---:|---|"]
    for row in outcomes:
        seen = ", ".join(f"{remark} {count}×" for remark, count in sorted(row.remarks.items()))
        lost = len(row.problems)
        lines.append(f"| {row.attack} | {row.command} | {row.tried} | {row.tried - lost} | {lost} | {seen} |")
    tried, lost = sum(row.tried for row in outcomes), sum(len(row.problems) for row in outcomes)
    lines.append(f"| **all** | | **{tried}** | **{tried - lost}** | **{lost}** | |")
    return "\n".join(lines)


def _ends(number: int) -> set[int]:
    """How a command may end that was sent a signal: by it, by its own leave, or before it."""
    return {0, -number, 128 + number}


def _is_held(ended: Ended) -> bool:
    return "another process" in ended.said


def _stray(place: Path) -> str:
    """What lies about under temporary names, but for a folder whose content a kill has left in its place already."""
    found = [name for name in strays(place) if not (place / name).is_dir() or any((place / name).iterdir())]
    return f"left lying: {', '.join(found[:4])}" if found else ""


def _footprint(folder: Path) -> int:
    """Bytes of the disk that a folder takes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) if folder.exists() else 0


def _mount_point(command: Command, place: Path, part: str) -> Path:
    """Where the disk of a part goes: an export is put in its place as a whole, so the place lies on that disk."""
    return place if command.arguments(place, place)[0] == "export" else place / part


@contextlib.contextmanager
def _disk(folder: Path, size: int) -> Iterator[Callable[[str], object]]:
    """A disk of so many bytes in memory; yields a function that changes its options."""
    folder.mkdir(exist_ok=True)

    def mount(*words: str) -> object:
        return subprocess.run(["mount", *words, str(folder)], check=True, stdout=sys.stderr)

    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
