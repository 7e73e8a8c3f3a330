"""A checkpoint has nothing deleted outside the folders of checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmtune.cli.main import main

DELETED = {
    "above its folder": "FOLDER/run/checkpoints/../../own/a.ckpt",
    "its folder's parent": "FOLDER/run/checkpoints/../../own",
    "an address": "local:///FOLDER/own/a.ckpt",
    "an address within": "FOLDER/run/checkpoints/x/../../../own",
    "a link": "FOLDER/run/checkpoints/link/a.ckpt",
    "no checkpoint": "FOLDER/run/checkpoints/notes.txt",
}


@pytest.fixture
def unfinished(flags: list[str], tmp_path: Path) -> list[str]:
    """A run of two steps that ended after the first; and a folder of the user's, `own`."""
    short = [*flags, "--checkpoint_every=1", "--trainer.max_epochs=2"]
    assert main(["fit", *short]) == 0
    shutil.rmtree(tmp_path / "run" / "model")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "previous.ckpt").replace(checkpoints / "last.ckpt")
    (tmp_path / "own").mkdir()
    for file in (tmp_path / "own" / "a.ckpt", checkpoints / "notes.txt"):
        file.write_text("mine")
    return short


@pytest.mark.parametrize("named", DELETED.values(), ids=DELETED)
def test_a_checkpoint_has_nothing_else_deleted(
    named: str, unfinished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    file = checkpoints / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    state = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("ModelCheckpoint"))
    state["last_model_path"] = named.replace("FOLDER", str(tmp_path))
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        if "link" in named:
            patch.setenv("MMTUNE_FOLLOW_LINKS", "1")
            (checkpoints / "link").symlink_to(tmp_path / "own")
        assert main(["fit", *unfinished, f"--ckpt_path={tmp_path / 'hostile.ckpt'}"]) == 2
    assert "nothing was deleted" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "own" / "a.ckpt").exists()
    assert (checkpoints / "notes.txt").exists()


def test_a_run_goes_on_and_deletes_its_own(
    unfinished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_one = (
        f"[{{class_path: ModelCheckpoint, init_args: {{dirpath: {tmp_path / 'kept'}, every_n_train_steps: EVERY}}}}]"
    )
    more = [*unfinished, "--new_schedule=true", "--trainer.max_epochs=6", "--trainer.callbacks"]
    assert main(["fit", *more, keep_one.replace("EVERY", "1")]) == 2  # as often as the run's own, and so its twin
    assert "more than one stateful callback" in capsys.readouterr().err
    assert main(["fit", *more, keep_one.replace("EVERY", "2")]) == 0
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["epoch=5-step=6.ckpt"]
