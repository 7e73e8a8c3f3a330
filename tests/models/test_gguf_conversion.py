"""A GGUF file is converted once, by one of the processes that want it, and leaves no trace in what is drawn after."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from tiny_models import save_gguf

from mmtune.common.errors import UserError
from mmtune.models.language import load_language


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    save_gguf(tmp_path / "tiny.gguf")
    return str(tmp_path / "tiny.gguf")


def test_the_random_state_is_the_same_whether_it_was_converted_before_or_not(gguf: str) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        load_language(gguf)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def _load(gguf: str) -> None:
    torch.set_num_threads(1)  # OpenMP's threads are not there in a forked process, which would wait for them
    load_language(gguf)


def test_two_processes_convert_once(gguf: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_load, args=(gguf,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert capfd.readouterr().err.count("Converting tiny.gguf once") == 1
    (folder,) = (path for path in (tmp_path / "cache" / "gguf").iterdir() if path.is_dir())
    assert (folder / "config.json").is_file()


def test_a_cache_without_room_is_named(gguf: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"what tiny.gguf is converted to cannot be kept: .*MMTUNE_CACHE"):
        load_language(gguf)
    (tmp_path / "cache").unlink()
    load_language(gguf)
