"""Start the commands that tests run as processes without waiting for imports.

`python -m mmtune.cli.main …` imports for seconds before it does anything, and the tests start about a hundred of them.
A server process imports once and forks for each; what is forked is a process of its own that can be killed, waited for
and measured. Whatever cannot be the same that way is started as ever: other programs, and environments whose
differences libraries read when they are imported.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "mmtune.cli.main"]
ADDRESS = "MMTUNE_TESTS_WARM"  # the variable that names the server's socket
_READ_AT_IMPORT = ("PYTHON", "HF_", "HUGGING", "TRANSFORMERS", "OMP_", "MKL_", "MALLOC", "TORCH", "ATEN", "CUDA", "LD_")
_PRELOADED = ("train", "evaluate", "chat", "plan", "data", "report", "compare", "reproduce")
_COLD = subprocess.Popen


def alike(environment: dict[str, str]) -> bool:
    """Whether a process of this environment can be forked; starts the server where there is none yet."""
    if "coverage" in sys.modules:
        return False  # which measures processes that begin at their beginning
    if ADDRESS not in os.environ:
        server = Server()
        os.environ[ADDRESS] = server.address
        atexit.register(server.close)
    return _read_at_import(environment) == json.loads(Path(f"{os.environ[ADDRESS]}.json").read_text())


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide at import time, but for the list of folders, which every test gives in full."""
    other = {"PYTHONPATH", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"}  # main sets the last two for all
    return {k: v for k, v in environment.items() if k.startswith(_READ_AT_IMPORT) and k not in other}


class WarmPopen(_COLD):  # type: ignore[type-arg]
    """A Popen that has mmtune's commands forked by the server, and starts all else as ever."""

    _connection: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, *rest: Any) -> None:  # fmt: skip
        (read, _, _, write, _, error), options = rest[:6], rest[6:]
        environment = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()}
        command = [os.fsdecode(word) for word in args] if isinstance(args, (list, tuple)) else []
        if command[:3] != COMMAND or shell or executable or preexec_fn or pass_fds or not alike(environment):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                                   creationflags, shell, *rest)  # type: ignore[misc] # fmt: skip
            return
        environment[ADDRESS] = os.environ[ADDRESS]
        own_session = bool(options[5]) if len(options) > 5 else False  # restore_signals, gid, gids, uid, umask, it
        job = {"arguments": command[3:], "cwd": str(cwd or Path.cwd()), "environment": environment}
        job["own_session"] = own_session
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[ADDRESS])
        fds = [fd if fd >= 0 else number for number, fd in enumerate((read, write, error))]
        socket.send_fds(self._connection, [json.dumps(job).encode() + b"\n"], fds)
        self.pid = int(self._line())
        self._child_created = True
        self._close_pipe_fds(*rest[:6])  # type: ignore[attr-defined]

    def _line(self) -> str:
        assert self._connection is not None
        line = b""
        while not line.endswith(b"\n"):
            received = self._connection.recv(1)
            if not received:
                raise OSError("the server of warm processes is gone")
            line += received
        return line.decode()

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc]
        if self.returncode is None:
            self._try_wait(os.WNOHANG)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As os.waitpid: the process and its status, or 0 where it still runs."""
        if self._connection is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = int(self._line())
        self._connection.close()
        self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.pid, status

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not ended."""
        self.poll()
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Server:
    """The server's own process, as the tests hold it: it ends with them."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._folder = tempfile.mkdtemp()
        self.address = str(Path(self._folder) / "socket")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        Path(f"{self.address}.json").write_text(json.dumps(_read_at_import(os.environ)))
        command = [sys.executable, __file__, self.address]
        self._process = _COLD(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise OSError("the server of warm processes does not start")

    def close(self) -> None:
        """End the server; what it has forked goes on. A fork of the tests that ends leaves it alone."""
        if os.getpid() != self._owner:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self._folder)


def serve(address: str) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for every job, and tell how it ended.

    Returns:
        In the server None, once its standard input ends; in what it forks, the job and its three files.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    os.write(1, b"ready\n")
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([0, listener, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    connection = running.pop(ended[0])
                    with contextlib.suppress(OSError):  # who asked for it is gone
                        connection.sendall(f"{ended[1]}\n".encode())
                    connection.close()
        if listener in ready:
            connection, _ = listener.accept()
            job, fds = receive(connection)
            if pid := os.fork():
                running[pid] = connection
                connection.sendall(f"{pid}\n".encode())
                for fd in fds:
                    os.close(fd)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for held in (listener, connection, *running.values()):
                held.close()
            os.close(wake)
            os.close(waker)
            return job, fds
        if 0 in ready:
            return None


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A job and the files for its input, output and errors."""
    text, fds = b"", array.array("i")
    while not text.endswith(b"\n"):
        data, received, _, _ = socket.recv_fds(connection, 65536, 3)
        text += data
        fds.extend(received)
    return json.loads(text), list(fds)


def run(job: dict[str, Any], fds: list[int]) -> None:
    """Become the process that was asked for."""
    if job["own_session"]:
        os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    sys.path[0] = job["cwd"]
    sys.argv = [COMMAND[2], *job["arguments"]]
    subprocess.Popen = WarmPopen  # type: ignore[misc]  # it may start processes of its own
    del sys.modules["mmtune.cli.main"]
    runpy.run_module("mmtune.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    importlib.import_module("mmtune.cli.main").quieten_libraries()
    for name in _PRELOADED:
        importlib.import_module(f"mmtune.cli.{name}")
    if (asked := serve(sys.argv[1])) is not None:
        run(*asked)
