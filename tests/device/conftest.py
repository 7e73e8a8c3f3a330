"""Fixtures for tests on a GPU; they are collected with `--card` alone."""

from __future__ import annotations

import contextlib
import csv
import gc
import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from device.card.waits import CountedCalls, Waits, warned_waits
from mmtune.cli.main import main

Flags = list[str]
BF16, FP16 = "--trainer.precision=bf16-mixed", "--trainer.precision=16-mixed"
FROZEN = "--model.dtype=bfloat16"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("--card") else True


@dataclass
class Run:
    """A finished run."""

    folder: Path

    def column(self, name: str) -> list[float]:
        """Return a column of the metrics, without its empty cells."""
        with (self.folder / "metrics.csv").open() as stream:
            return [float(row[name]) for row in csv.DictReader(stream) if row[name]]

    @property
    def losses(self) -> list[float]:
        """Return the training loss of each step."""
        return self.column("train_loss")

    @property
    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "ledger.json").read_text())
        return found


@pytest.fixture(scope="session")
def pretended(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--card") == "pretended")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Flags:
    """40 short rows of text."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [{"prompt": f"What comes after {i}?", "completion": f"It is {i + 1}" + "." * (i % 5)} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f'--data.train.text=["{file}"]']


@pytest.fixture(scope="session")
def visual(tmp_path_factory: pytest.TempPathFactory, photos: list[Image.Image], tower_weights: Path) -> Flags:
    """Six rows with an image each, and a tower."""
    folder = tmp_path_factory.mktemp("visual")
    rows = []
    for n, photo in enumerate(photos):
        photo.save(folder / f"{n}.png")
        talk = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"Number {n}" + "!" * n}]
        rows.append({"image": f"{n}.png", "conversations": talk})
    (folder / "visual.json").write_text(json.dumps(rows))
    return [
        f'--data.train.visual=["{folder / "visual.json"}"]',
        "--model.vision.tower=timm:test_vit",
        f"--model.vision.weights={tower_weights}",
        "--model.vision.grid=2",
    ]


@pytest.fixture(scope="session")
def both(text: Flags, visual: Flags) -> Flags:
    """Rows of both kinds."""
    return [*text, *visual, "--data.train.text_fraction=0.5", "--data.train.total=12", "--data.pack_rows=5"]


@pytest.fixture
def fit(llama: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of some steps on the GPU."""

    def run(*flags: str, name: str = "run", steps: int = 4, device: str = "gpu", language: Path = llama,
            exit_code: int = 0) -> Run:  # fmt: skip
        options = {
            "--out": tmp_path / name,
            "--model.language": language,
            "--model.template": "chatml",
            "--model.learning_rate": 0.01,
            "--data.max_length": 256,
            "--trainer.accelerator": device,
            "--trainer.devices": 1,
            "--trainer.max_steps": steps,
            "--trainer.max_epochs": 9,
            "--trainer.enable_progress_bar": "false",
        }
        assert main(["fit", *(f"{flag}={value}" for flag, value in options.items()), *flags]) == exit_code
        return Run(tmp_path / name)

    return run


@pytest.fixture
def waits(pretended: bool) -> Callable[[Waits], AbstractContextManager[Any]]:
    """Within, the waits for the GPU are counted, but for those of `NearTies`."""

    @contextlib.contextmanager
    def counted(found: Waits) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, CountedCalls(found) if pretended else warned_waits(found):
            for owner in (torch, torch.Tensor):
                patch.setattr(owner, "argmax", inspect.unwrap(owner.argmax))
            yield

    return counted


@pytest.fixture(scope="session")
def deeper_llama(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with five blocks in place of two."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("deeper")
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig.from_pretrained(llama, num_hidden_layers=5)).save_pretrained(folder)
    return folder


@pytest.fixture
def memory_left(pretended: bool) -> Iterator[Callable[[int], None]]:
    """Leave so many bytes of the GPU's memory, until the test ends."""

    def leave(size: int) -> None:
        if pretended:
            torch.ops.pretended.limit_memory(size)
            return
        gc.collect()
        torch.cuda.empty_cache()
        used, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((used + max(size, 2**21)) / total)

    yield leave
    if pretended:
        torch.ops.pretended.limit_memory(-1)
    else:
        torch.cuda.set_per_process_memory_fraction(1.0)
