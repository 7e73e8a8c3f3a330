"""Disks that are full or read-only, and what kills leave on them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mmtune.cli import main as command_line
from mmtune.cli.main import main
from mmtune.common import disk
from mmtune.common.errors import UserError
from mmtune.common.files import atomic_path, hold_folder, is_blank, write_json

HOLDS = (
    "import sys, pathlib; from mmtune.common.files import hold_folder; "
    "hold_folder(pathlib.Path(sys.argv[1]), '--out'); "
)


def test_what_a_kill_left_is_swept_away_by_the_next_that_writes_the_same(tmp_path: Path) -> None:
    script = "import os, sys, pathlib; from mmtune.common.files import atomic_path\n"
    script += "with atomic_path(pathlib.Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", script, tmp_path / "a.json"], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1  # the second and third have swept, too
    write_json(tmp_path / "b.json", 1)
    assert len(list(tmp_path.iterdir())) == 2  # another file's is not touched
    write_json(tmp_path / "a.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_what_is_in_use_is_not_swept_away(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_many_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for _ in range(30):
            with atomic_path(tmp_path / "out") as folder:
                folder.mkdir()
                (folder / "a").write_text(name)
                (folder / "b").write_text(name)

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b").read_text()


def test_a_folder_swept_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real = [], os.open

    def late(path: Any, *flags: Any, **more: Any) -> int:
        opened.append(path)
        if len(opened) == 1:
            Path(path).rmdir()
        return real(path, *flags, **more)

    monkeypatch.setattr(os, "open", late)
    write_json(tmp_path / "a.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_takes_its_name_is_on_the_disk_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def note(descriptor: int) -> None:
        assert not (tmp_path / "out").exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(tmp_path / "out") as folder:
        (folder / "inner").mkdir(parents=True)
        (folder / "a").touch()
        (folder / "inner" / "b").touch()
    assert set(synced) == {(tmp_path / "out" / name).stat().st_ino for name in ("a", "inner/b")}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full; free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full; free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; mend that"),
    ],
)
def test_trouble_with_the_disk_is_one_line_that_names_the_file(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "model"

    def fail(module: str) -> None:
        with atomic_path(target):
            try:
                raise error
            except Exception as cause:
                raise ValueError("a library's own words") from cause

    monkeypatch.setattr(command_line.importlib, "import_module", fail)
    assert main(["export"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"mmtune: error: {target}: {said}")
    assert not list(target.parent.iterdir())
    with pytest.raises(OSError, match=str(target)):
        main(["export", "--debug"])


def test_an_error_that_was_dealt_with_is_no_trouble_with_the_disk() -> None:
    def fails(error: BaseException) -> None:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise error from None

    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "gone")):
        with pytest.raises(type(error)) as raised:
            fails(error)
        assert disk.trouble(raised.value) is None


def test_a_folder_is_held_until_its_process_ends_and_not_by_its_children(tmp_path: Path) -> None:
    script = HOLDS + "import os, time; os.fork() or time.sleep(60); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"--out {tmp_path}: another process is writing there; wait until"):
            hold_folder(tmp_path, "--out")
        holder.kill()
        holder.wait()
        hold_folder(tmp_path, "--out")
        hold_folder(tmp_path, "--out")  # one process may, as a notebook does
        assert subprocess.run([sys.executable, "-c", HOLDS, tmp_path], check=False, capture_output=True).returncode == 1
    finally:
        os.killpg(holder.pid, 9)
        holder.stdout.close()
    assert is_blank(tmp_path)


def test_hidden_names_alone_do_not_fill_a_folder(tmp_path: Path) -> None:
    assert is_blank(tmp_path / "missing")
    (tmp_path / ".reproduce.json.x").mkdir()
    assert is_blank(tmp_path)
    (tmp_path / "file").touch()
    assert not is_blank(tmp_path)
    assert not is_blank(tmp_path / "file")


def test_a_clock_before_1980_does_not_stop_the_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from mmtune.evaluation.run import thumbnails

    class Shown:
        image = "a"
        images = (type("Shown", (), {"open": staticmethod(lambda: Image.new("RGB", (9, 9)))}),)

    monkeypatch.setattr("time.localtime", lambda *_: (1970, 1, 1, 0, 0, 0, 3, 1, 0))
    thumbnails.keep_thumbnails(tmp_path / "t.zip", [Shown()], [Shown()])  # type: ignore[list-item]
    with zipfile.ZipFile(tmp_path / "t.zip") as archive:
        assert archive.namelist() == ["a.jpg"]
