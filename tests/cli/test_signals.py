"""Commands that run others stop with them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtune.cli import quickstart, reproduce
from mmtune.cli.main import main
from mmtune.common.signals import Terminated
from mmtune.training.callbacks.stopping import StopOnSignal

TERM, INT = signal.SIGTERM, signal.SIGINT


def killed_by(number: int) -> Callable[..., Any]:
    """A step in which the signal comes."""

    def step(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(60)

    return step


@pytest.mark.parametrize(("number", "status", "name"), [(TERM, 143, "SIGTERM"), (INT, 130, "Ctrl-C")])
@pytest.mark.parametrize("place", ["prepare", "before", "tune", "after"])
def test_quickstart_stops_with_its_step(
    place: str, number: int, status: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    done: list[str] = []
    steps = {"prepare": lambda: tmp_path, "before": lambda: 0, "tune": lambda: 0, "after": lambda: 0}
    steps[place] = killed_by(number)

    def run(step: str) -> Any:
        done.append(step)
        return steps[step]()

    monkeypatch.setattr(quickstart, "prepare", lambda: run("prepare"))
    monkeypatch.setattr(quickstart, "_tune", lambda *_: run("tune"))
    monkeypatch.setattr(quickstart, "_evaluate", lambda model, out, *_: run(out.name))
    monkeypatch.setattr("mmtune.models.language.load_tokenizer", lambda _: None)
    handlers = [signal.getsignal(each) for each in (TERM, INT)]
    assert main(["quickstart", "--out", str(tmp_path / "run")]) == status
    assert done == list(steps)[: list(steps).index(place) + 1]
    assert f"mmtune: stopped by {name}; the same command goes on from here" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (TERM, INT)] == handlers


@pytest.mark.parametrize("status", [143, 130])
@pytest.mark.parametrize("step", ["_evaluate", "_tune"])
def test_quickstart_ends_with_a_step_that_is_stopped(
    step: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise Terminated(143) if status == 143 else KeyboardInterrupt

    monkeypatch.setattr(quickstart, "prepare", lambda: tmp_path)
    monkeypatch.setattr("mmtune.models.language.load_tokenizer", lambda _: None)
    monkeypatch.setattr(quickstart, "write_report", lambda *_: pytest.fail("it went on"))
    for name in ("_evaluate", "_tune"):
        monkeypatch.setattr(quickstart, name, lambda *_, own=name: stop() if own == step else None)
    assert main(["quickstart", "--out", str(tmp_path / "run")]) == status


@pytest.mark.parametrize("late", [True, False])
def test_reproduce_stops_with_a_step_that_sigterm_reaches(late: bool, tmp_path: Path) -> None:
    """Also where the step was as good as done, and ends well."""
    ending = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));" if late else ""
    ready = tmp_path / "ready"
    step = f"import os, signal, sys, time, pathlib; {ending} pathlib.Path({str(ready)!r}).touch();"
    step += f"os.kill({os.getpid()}, signal.SIGTERM); time.sleep(60)"
    assert reproduce._run_process([sys.executable, "-c", step]) == 143
    assert ready.exists()


@pytest.mark.parametrize(("number", "status"), [(TERM, 143), (INT, 130)])
def test_reproduce_stops_between_its_steps(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nothing:
        def claim(self) -> None: ...

        def steps(self) -> Any:
            return killed_by(number)()

    monkeypatch.setattr(reproduce, "Comparison", lambda *_: Nothing())
    assert main(["reproduce", "--preset", "tiny", "--out", "x", "--data-root", "y"]) == status
    assert "the same command goes on from here" in capsys.readouterr().err


def test_fit_stopped_before_its_first_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mmtune.cli import train

    monkeypatch.setattr(train, "command_line", killed_by(TERM))
    assert train.main(["fit"]) == 143
    message = "mmtune: stopped by SIGTERM; the same command goes on from the last checkpoint, if there is one\n"
    assert capsys.readouterr().err == message


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    callback = StopOnSignal(tmp_path)
    callback._interrupt(INT, None)
    assert callback.received == INT
    with pytest.raises(KeyboardInterrupt):
        callback._interrupt(INT, None)
    assert capfd.readouterr().err.count("Ctrl-C again stops at once") == 1


def test_signals_reach_the_step_of_reproduce(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = (
        "import pathlib, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )

    def terminate() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    assert reproduce._run_process([sys.executable, "-c", program]) == 143
