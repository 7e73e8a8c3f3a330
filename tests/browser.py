"""A real browser without a window, for tests of pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium: apt-get install chromium")
_QUIET = ["background-networking", "component-update", "sync", "quic", "gpu", "default-apps", "extensions"]
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in _QUIET)]


class Visit(NamedTuple):
    """What a page became once its script had run, and what it told the console."""

    dom: str
    console: list[str]


def visit(file: Path, profile: Path, fragment: str = "") -> Visit:
    """Open a page in Chromium; skips the test where Chromium does not start."""
    command = [
        *CHROMIUM,
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, file.resolve().as_uri() + fragment], capture_output=True, timeout=120, check=False)
    dom, log = (output.decode(errors="replace") for output in (done.stdout, done.stderr))
    if not dom:
        pytest.skip(f"chromium does not start here: {log[-200:]}")
    return Visit(dom, [line for line in log.splitlines() if "CONSOLE" in line])
