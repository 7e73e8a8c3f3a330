"""What is written into a folder of others lands there, and not where its links lead."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.common.files import check_links
from mmtune.evaluation.run.store import Store


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's, and a file in it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "file").write_text("mine")
    return folder


@pytest.mark.parametrize("name", [".lock", "checkpoints", "tensorboard", "checkpoints/last.ckpt/__0_0.distcp"])
def test_a_run_writes_by_no_link(
    name: str, llama: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(own / "new" if name == ".lock" else own)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    flags = [
        f"--out={run}",
        f"--model.language={llama}",
        "--model.template=chatml",
        "--model.lora.r=2",
        f"--data.train.text=[{tmp_path / 'a.jsonl'}]",
    ]
    assert main(["fit", *flags, "--trainer.accelerator=cpu"]) == 2
    assert f"{name} is a link that leads to {own}" in capsys.readouterr().err
    assert [file.name for file in own.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["answers.sqlite", "answers.sqlite-wal", "samples", "samples/a.jsonl", "thumbnails"])
def test_an_evaluation_writes_by_no_link(name: str, own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(own)
    with pytest.raises(UserError, match=f"--out .*{name} is a link that leads to .*MMTUNE_FOLLOW_LINKS=1"):
        Store(folder)
    assert [file.name for file in own.iterdir()] == ["file"]


def test_links_of_one_s_own_and_those_that_stay_are_followed(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "large").mkdir(parents=True)
    (run / "checkpoints").symlink_to("large")
    check_links(run, "--out", ["checkpoints"])
    (run / "tensorboard").symlink_to(own)
    with pytest.raises(UserError, match="tensorboard is a link"):
        check_links(run, "--out", ["*"])
    monkeypatch.setenv("MMTUNE_FOLLOW_LINKS", "1")
    check_links(run, "--out", ["*"])
    check_links(tmp_path / "none", "--out", ["*"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match=r"\.lock is no file"):
        check_links(tmp_path, "--out", [".lock"])
