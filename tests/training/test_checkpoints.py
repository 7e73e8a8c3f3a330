"""Checkpoints: written whole, read only where they fit."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mmtune.common.errors import UserError
from mmtune.training.checkpoint_io import WholeCheckpoints, newest_whole

Fit = Callable[..., int]
CHECKPOINT = {"pytorch-lightning_version": pl.__version__, "state_dict": {"a": torch.arange(1000)}}


@pytest.fixture
def flags(text_rows: Path, lora_flags: list[str]) -> list[str]:
    return [f"--data.train.text=[{text_rows}]", "--data.pack_rows=4", *lora_flags]


@pytest.fixture
def unfinished(fit: Fit, flags: list[str], tmp_path: Path) -> Path:
    """A run that lacks its model, as one that was killed at its last step."""
    run = tmp_path / "run"
    assert fit(run, *flags, "--checkpoint_every=2") == 0
    shutil.rmtree(run / "model")
    return run


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", ["save", "fsync", "replace"])
def test_a_kill_while_writing_leaves_the_checkpoint_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "checkpoints" / "last.ckpt"
    files = WholeCheckpoints()
    files.save_checkpoint({**CHECKPOINT, "step": 1}, target)

    def killed(*arguments: object, **options: object) -> None:
        if moment == "save":
            arguments[1].write(b"half")  # type: ignore[attr-defined]
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr({"save": torch, "fsync": os, "replace": Path}[moment], moment, killed)
        with pytest.raises(KilledError):
            files.save_checkpoint({**CHECKPOINT, "step": 2}, target)
    found = newest_whole(target.parent)
    assert found is not None
    assert files.load_checkpoint(found)["step"] == 1
    files.save_checkpoint({**CHECKPOINT, "step": 3}, target)
    assert files.load_checkpoint(target)["step"] == 3
    assert {p.name for p in target.parent.iterdir()} <= {"last.ckpt", "previous.ckpt"}


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, target, replace = WholeCheckpoints(), tmp_path / "last.ckpt", Path.replace
    renamed: list[Path] = []
    files.save_checkpoint({**CHECKPOINT, "step": 1}, target)

    def killed_the_second_time(path: Path, new: Path) -> Path:
        if renamed:
            raise KilledError
        renamed.append(path)
        return replace(path, new)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed_the_second_time)
        with pytest.raises(KilledError):
            files.save_checkpoint({**CHECKPOINT, "step": 2}, target)
    assert newest_whole(tmp_path) == tmp_path / "previous.ckpt"
    assert files.load_checkpoint(tmp_path / "previous.ckpt")["step"] == 1
    for step in (3, 4):
        files.save_checkpoint({**CHECKPOINT, "step": step}, target)
    assert newest_whole(tmp_path) == target
    assert files.load_checkpoint(tmp_path / "previous.ckpt")["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_nothing_is_written_outside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))
    WholeCheckpoints().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert torch.equal(torch.load(tmp_path / "last.ckpt")["state_dict"]["a"], torch.arange(1000))


@pytest.mark.parametrize("damage", ["empty", "half", "junk", "end", "other"])
def test_a_checkpoint_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(CHECKPOINT, file)
    whole = file.read_bytes()
    if damage == "other":
        torch.save({"weights": 1}, file)
    else:
        file.write_bytes(
            {"empty": b"", "half": whole[: len(whole) // 2], "junk": b"junk" * 99, "end": whole[:-9]}[damage]
        )
    with pytest.raises(UserError, match=r"last\.ckpt: (a damaged checkpoint|not the checkpoint of a training run)"):
        WholeCheckpoints().load_checkpoint(file)
    with pytest.raises(UserError, match=r"none\.ckpt: no such file"):
        WholeCheckpoints().load_checkpoint(tmp_path / "none.ckpt")


def test_a_strategy_that_brings_its_own_files_keeps_them(
    fit: Fit, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", lambda *args, **options: used.append("ours"))
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda *args, **options: used.append("theirs"))
    plugin = "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"
    assert fit(tmp_path / "a", *flags, "--checkpoint_every=5", plugin) == 0
    assert set(used) == {"theirs"}
    used.clear()
    assert fit(tmp_path / "b", *flags, "--checkpoint_every=5") == 0
    assert set(used) == {"ours"}


def test_a_damaged_checkpoint_stops_the_run_with_one_line(
    fit: Fit, flags: list[str], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("previous.ckpt", "last.ckpt"):
        file = unfinished / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:500])
    capsys.readouterr()
    assert fit(unfinished, *flags) == 2
    assert f"{file}: a damaged checkpoint" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, fit: Fit, flags: list[str], unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    same_weights: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    last = unfinished / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    with zipfile.ZipFile(last) as archive:  # between its members there are bytes that nothing reads
        largest = archive.read(max(archive.infolist(), key=lambda member: member.file_size))
    middle = content.index(largest) + len(largest) // 2
    if damage == "gone":
        last.unlink()
    else:
        other = bytes([content[middle] ^ 1])
        last.write_bytes(content[:middle] + (b"" if damage == "cut" else other + content[middle + 1 :]))
    if damage == "cut":
        assert fit(unfinished, *flags, f"--ckpt_path={last}") == 2
        assert f"{last}: a damaged checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert fit(unfinished, *flags) == 0
    assert "from previous.ckpt, for last.ckpt is damaged or missing" in capsys.readouterr().err
    assert fit(tmp_path / "whole", *flags) == 0
    same_weights(unfinished, tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("--model.lora.r=8", "q_proj.lora_A.default.weight (4x64 in the checkpoint, 8x64 here)"),
        ("--model.lora.targets=[q_proj]", "other parts of it: only in the checkpoint: model.language."),
        ("--data.train.total=20", "trained on other rows"),
        ("--data.train.total=20", "(rows 40 then and 20 now, tokens "),
        ("--data.train.seed=7", "seed 42 then and 7 now"),
        ("--model.template=vicuna_v1", "trained on other rows"),
    ],
)
def test_a_run_is_not_resumed_as_another(
    changed: str, named: str, fit: Fit, flags: list[str], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(unfinished, *flags, changed) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert fit(unfinished, *flags) == 0


def test_a_run_that_was_moved_goes_on_in_its_new_place(
    fit: Fit, flags: list[str], unfinished: Path, tmp_path: Path
) -> None:
    moved = unfinished.rename(tmp_path / "moved")
    flags = [*flags, "--trainer.max_epochs=2", "--new_schedule=true", "--checkpoint_every=2"]
    assert fit(moved, *flags) == 0
    assert sorted(p.name for p in (moved / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(moved / "checkpoints" / "last.ckpt")["global_step"] == 20
    with (moved / "metrics.csv").open() as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == list(range(20))


def test_a_run_says_nothing_that_means_nothing(base_flags: list[str], flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmtune.cli.main", "fit", *base_flags, *flags, "--checkpoint_every=2"]
    (tmp_path / "other").mkdir()
    for run, changes in (("run", ["--checkpoint_every=3"]), ("other/run", [])):
        done = subprocess.run(
            [*command, *changes, "--out", run], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        resumed = ["Resuming other/run after step 9 from its last checkpoint."] if run == "other/run" else []
        assert done.stderr.splitlines() == resumed
        assert len(done.stdout.splitlines()) == 1
        shutil.rmtree(tmp_path / run / "model")
        if run == "run":
            (tmp_path / "run").rename(tmp_path / "other" / "run")
