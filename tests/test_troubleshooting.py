"""docs/troubleshooting.md: every mistake in it is made, and prints the line that stands there."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmtune.cli.main import main
from mmtune.training.module import InstructionTuning

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"
MISTAKES = re.findall(r"^```text\n\$ mmtune (.*)\n(mmtune: error: .*)\n```$", DOCUMENT.read_text(), re.MULTILINE)
TASK = """
name: colours
version: 1
modality: language
dataset: {path: me/colours, config: null, split: test}
prompt: "{{ question }}"
target: "{{ answer }}"
answer: short
max_tokens: 2
extract: [first_clause]
metrics: [accuracy]
"""
CONFIGS = {
    "misspelt": "model: {lora: {rank: 4}}",
    "too_far_left": "model:\nbase: runs/mine",
    "too_far_right": "model:\n  base: runs/mine\n    stage: tune",
}
SAID = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A square."}]


@pytest.fixture(scope="module")
def world(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: configs, rows, a finished run, one that was stopped, and two evaluations."""
    folder = tmp_path_factory.mktemp("world")
    tower = {"tower": "timm:test_vit", "weights": str(tower_weights), "grid": 2}
    mine = {
        "model": {"language": str(llama), "template": "chatml", "vision": tower, "lora": {"r": 4, "alpha": 8}},
        "data": {"max_length": 256},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    }
    (folder / "mine.yaml").write_text(json.dumps(mine))
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text)
    asked = [{"prompt": f"What comes after {i}?", "completion": f"{i + 1}"} for i in range(8)]
    lines("rows", asked[:4], folder)
    lines("others", asked[4:], folder)
    lines("odd", [{"text": "a", "label": 1}], folder)
    lines("empty", [], folder)
    for name in ("0.png", "1.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    marked_twice = [{"from": "human", "value": "<image> What does <image> mean?"}, SAID[1]]
    for name, photos, said in (
        ("photos", ["0.png", "1.png"], SAID),
        ("lost", ["7.png"], SAID),
        ("unmarked", ["0.png"], marked_twice),
    ):
        (folder / f"{name}.json").write_text(json.dumps([{"image": photo, "conversations": said} for photo in photos]))
    rows = folder / "data/hub/me/colours/default/test.parquet"
    rows.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"question": f"{i}?", "answer": "red"} for i in range(4)]), rows)
    (folder / "colours.yaml").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config=mine.yaml", "--data.train.text=[rows.jsonl]", "--out=runs/mine"]) == 0
        shutil.copytree("runs/mine", "runs/stopped", ignore=shutil.ignore_patterns("model"))
        for limit, out in (("2", "base-scores"), ("3", "tuned-scores")):
            scored = ["eval", "--model=runs/mine", "--suite=colours.yaml", "--data-root=data"]
            assert main([*scored, f"--limit={limit}", f"--out={out}"]) == 0
    return folder


def lines(name: str, rows: list[dict[str, Any]], folder: Path) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def no_memory(patch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    patch.setattr(InstructionTuning, "training_step", fail)


def no_room(patch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "colours.jsonl" and "w" in args:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *args, **options)

    patch.setattr(Path, "open", full)


def no_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.backends.mps, "is_available", lambda: False)


def another_process(patch: pytest.MonkeyPatch) -> None:
    def held(*arguments: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    patch.setattr("fcntl.lockf", held)


def no_network(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# what the machine must be like, by a part of the message
MACHINES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "out of memory": no_memory,
    "the disk is full": no_room,
    "finds no GPU": no_gpu,
    "another process": another_process,
    "hf download": no_network,
}


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_a_mistake_prints_what_the_document_says(
    command: str, message: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    for part, machine in MACHINES.items():
        if part in message:
            machine(monkeypatch)
    finished = {path for name in ("model", "results.json", "exported") for path in world.rglob(name)}
    assert main(shlex.split(command)) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune: error:")]
    assert re.fullmatch(".+".join(map(re.escape, message.split("…"))), error), error
    assert finished == {path for name in ("model", "results.json", "exported") for path in world.rglob(name)}


def test_every_block_of_the_document_is_a_mistake_that_is_made() -> None:
    assert len(MISTAKES) == DOCUMENT.read_text().count("```") // 2
