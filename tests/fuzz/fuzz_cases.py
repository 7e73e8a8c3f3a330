"""Run inputs one after the other, count them, and remember every outcome that a user should never see."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mmtune.cli.main import main
from mmtune.common.errors import UserError

T = TypeVar("T")

SECONDS = 60  # after which a case hangs; none takes one on a free machine
MEMORY = 3 * 2**30  # bytes of address space that a case may add
PEAK = 2**30  # bytes that a case may have resident at once
LONGEST = 2000  # characters of a message


class Hang(BaseException):  # no Exception, which the package could catch
    """A case did not end in time."""


@dataclass
class Cases:
    """What became of the cases of a session.

    Attributes:
        count: how many there were.
        refused: how many of them ended in the package's own error.
        faults: of those that ended otherwise, the first of each kind, by what was raised and where.
    """

    count: int = 0
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)

    def run(self, case: str, act: Callable[[], T], *, names: Iterable[str | Path] = ()) -> T | UserError | None:
        """Run a case.

        Args:
            case: how to make it again, for the report.
            act: what is to succeed or to raise a UserError.
            names: an error must name one of these: file, flag or key.

        Returns:
            What came out: a value, or the UserError; None where the case is at fault.
        """
        self.count += 1
        try:
            with bounded():
                return act()
        except UserError as error:
            self.refused += 1
            said = " ".join(str(error).split())
            wanted = [str(name) for name in names]
            if not said or len(said) > LONGEST:
                self.fault(f"a message of {len(said)} characters", case, said[:200])
            elif wanted and not any(name in str(error) for name in wanted):
                self.fault(f"names none of {wanted}: {said[:80]}", case, said)
            return error
        except (Exception, Hang) as error:
            self.fault(_where(error), case, _last_frames(error))
            return None

    def command(self, case: str, argv: list[str], *, names: Iterable[str | Path] = ()) -> int:
        """Run `mmtune ARGV`: it must end with 0, or with 2 and one line that names what is wrong."""
        self.count += 1
        out, err = io.StringIO(), io.StringIO()
        try:
            with bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(argv)
        except (Exception, Hang, SystemExit) as error:
            self.fault(_where(error), case, _last_frames(error))
            return 1
        said = [line for line in err.getvalue().splitlines() if line.startswith("mmtune: error: ")]
        wanted = [str(name) for name in names]
        self.refused += code == 2
        if code not in (0, 2) or "Traceback" in err.getvalue():
            self.fault(f"exit code {code}", case, err.getvalue()[-500:])
        elif code == 2 and not (len(said) == 1 and len(said[0]) <= LONGEST):
            self.fault(f"exit code 2 with {len(said)} lines", case, err.getvalue()[:500])
        elif code == 2 and wanted and not any(name in said[0] for name in wanted):
            self.fault(f"names none of {wanted}: {said[0][:80]}", case, said[0])
        return code

    def fault(self, kind: str, case: str, more: str) -> None:
        """Remember an outcome, unless there is one of its kind already."""
        self.faults.setdefault(kind, f"{case}\n{more}")

    def verdict(self) -> None:
        """Fail with all faults, and forget them."""
        found, self.faults = self.faults, {}
        if found:
            listed = "\n\n".join(f"### {kind}\n{more}" for kind, more in found.items())
            pytest.fail(f"{len(found)} kinds of fault\n\n{listed}", pytrace=False)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within, time and memory are limited, and advice of libraries is not shown."""

    def late(*_: Any) -> None:
        raise Hang(f"not done after {SECONDS} s")

    before, (soft, hard) = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    _forget_peak()
    resident = _status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if (taken := _status("VmHWM") - resident) > PEAK:
        raise MemoryError(f"a case took {taken / 2**30:.1f} GiB")


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])


def _last_frames(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-4:])


def _where(error: BaseException) -> str:
    """The exception's kind, and the last place in the package that it came by."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(sys.modules["mmtune"].__file__ or "").parent)
    own = [frame for frame in frames if frame.filename.startswith(package)]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "outside"
    return f"{type(error).__name__} at {place}: {str(error)[:25]}"


def numbered(few: int, many: int) -> pytest.MarkDecorator:
    """Give a test the numbers of its cases: a few, and, marked slow, the many after them."""
    slow = pytest.param(range(few, few + many), marks=pytest.mark.slow, id=f"{many} more")
    return pytest.mark.parametrize("numbers", [pytest.param(range(few), id=f"{few} cases"), slow])
