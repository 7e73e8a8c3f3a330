"""Commands of mmtune in processes of their own, and what can be done to such a process.

A process is forked from this one, which has imported torch and mmtune already: a random moment then falls into the
command's own work, and not into the seconds that importing takes. This process itself never computes with torch, whose
threads would not be forked with it.
"""

from __future__ import annotations

import atexit
import datetime
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmtune.cli.evaluate
import mmtune.cli.export
import mmtune.cli.reproduce
import mmtune.cli.train
import mmtune.models.export
import mmtune.models.vlm  # noqa: F401
from mmtune.cli.main import main

Prepare = Callable[[], None]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATIENCE = 600.0  # seconds after which a command counts as hanging


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; of one that a signal ended, minus the signal's number.
        said: all that it wrote to stdout and stderr.
        seconds: from its start to its end.
    """

    status: int
    said: str
    seconds: float

    @property
    def error(self) -> str:
        """The one line that tells a user what to do; empty where there is none, more than one, or a traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("mmtune: error:")]
        return lines[0] if len(lines) == 1 and "Traceback" not in self.said else ""


class Running:
    """A command that was started; it leads a process group."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log, self._begun = pid, log, time.monotonic()

    def signal(self, number: int, *, group: bool = True) -> None:
        """Send it, and the processes that it has started, a signal."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = _PATIENCE) -> Ended | None:
        """Wait for its end; None where it has not come after so many seconds."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            passed = time.monotonic() - self._begun
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self._log.read_text(errors="replace"), passed)
            if passed > seconds:
                return None
            time.sleep(0.002)

    def end(self) -> Ended:
        """Wait for its end, and kill it where it hangs."""
        ended = self.wait()
        if ended is None:
            self.signal(signal.SIGKILL)
            ended = self.wait(2 * _PATIENCE)
        assert ended is not None
        return ended


def start(work: Callable[[], Any], log: Path, *, prepare: Sequence[Prepare] = ()) -> Running:
    """Do work in a process of its own, whose exit status is what the work returns.

    Args:
        work: what to do.
        log: what it writes to stdout and stderr.
        prepare: what to do in that process before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        while os.getpgid(pid) != pid:  # until then a signal to its group would find none
            time.sleep(0.0005)
        return Running(pid, log)
    status = 1
    try:
        atexit._clear()  # what this process is to do at its own end
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        for step in prepare:
            step()
        status = int(work() or 0)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


def start_command(arguments: Sequence[str], log: Path, *, cache: Path, prepare: Sequence[Prepare] = ()) -> Running:
    """Start `mmtune ARGUMENTS` with a cache of its own."""

    def with_cache() -> None:
        os.environ["MMTUNE_CACHE"] = str(cache)

    return start(lambda: main(list(arguments)), log, prepare=[with_cache, *prepare])


def counting_disk_operations(area: Path, to: Path) -> Prepare:
    """Count what changes the disk below a folder, with a byte each in a file elsewhere."""

    def prepare() -> None:
        counts = os.open(to, os.O_WRONLY | os.O_CREAT)
        _on_disk_operation(area, lambda: os.write(counts, b"."))

    return prepare


def signal_before_disk_operation(area: Path, number: int, which: int) -> Prepare:
    """Send the process a signal just before it changes the disk below a folder for the n-th time, from 1."""

    def prepare() -> None:
        seen = [0]

        def strike() -> None:
            seen[0] += 1
            if seen[0] == number:
                os.killpg(0, which)

        _on_disk_operation(area, strike)

    return prepare


def _on_disk_operation(area: Path, act: Callable[[], object]) -> None:
    """Hear of files opened for writing, of renaming, making and deleting; not of what libraries write in C or Rust."""
    start, process = str(area), os.getpid()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not arguments[2] & _WRITING:
                return
        elif event not in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or os.getpid() != process:
            return
        if str(Path(os.fsdecode(path)).absolute()).startswith(start):
            act()

    sys.addaudithook(hear)


def limiting_file_size(most: int) -> Prepare:
    """No file may grow beyond so many bytes, as where the disk is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def jumping_clock(seed: int) -> Prepare:
    """The time of day jumps with every look at it, by up to sixty years forward and to before 1980; timers do not."""

    def prepare() -> None:
        from mmtune.evaluation.run import engine

        draw, lock, real = random.Random(seed), threading.Lock(), time.time

        def now() -> float:
            with lock:
                return real() + draw.choice([0, 3600, -3600, 4e8, 1.8e9, -4e8, -real() + 86400])

        class Moment(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Moment:
                return cls.fromtimestamp(now(), tz)

        localtime, gmtime, strftime = time.localtime, time.gmtime, time.strftime
        time.time, time.time_ns = now, lambda: int(now() * 1e9)
        time.localtime = lambda seconds=None: localtime(now() if seconds is None else seconds)
        time.gmtime = lambda seconds=None: gmtime(now() if seconds is None else seconds)
        time.strftime = lambda text, moment=None: strftime(text, time.localtime() if moment is None else moment)
        # the package's alone: libraries in C know how large a datetime is, and crash over another
        engine.datetime = types.SimpleNamespace(datetime=Moment, UTC=datetime.UTC)  # type: ignore[attr-defined]

    return prepare
