"""Damaged configs of `mmtune fit`, and odd values of its flags: parsed, or refused in one line."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_lines import parse_training
from fuzz_cases import Cases, numbered
from mutations import altered, damaged, written

from mmtune.common.files import resource_folder
from mmtune.common.layers import read_layered

CONFIGS = sorted(resource_folder("configs").glob("*.yaml"))


@numbered(6, 200)
def test_configs_with_altered_values(numbers: range, cases: Cases, tmp_path: Path) -> None:
    for number in numbers:
        random_ = random.Random(f"config {number}")
        whole: Any = read_layered(random_.choice(CONFIGS), "configs")
        file = tmp_path / f"{number}.yaml"
        file.write_bytes(written(altered(json.loads(json.dumps(whole)), random_), random_))
        case = f"config {number}: {file.read_bytes()[:900]!r}"
        cases.run(case, partial(parse_training, ["fit", "--config", str(file)]))


@numbered(12, 300)
def test_configs_with_damaged_bytes(numbers: range, cases: Cases, tmp_path: Path) -> None:
    for number in numbers:
        random_ = random.Random(f"config bytes {number}")
        whole = random_.choice(CONFIGS)
        file = tmp_path / f"{number}.yaml"
        file.write_bytes(damaged(whole.read_bytes(), random_))
        cases.run(f"config bytes {number}: {whole.name}", partial(parse_training, ["fit", "--config", str(file)]))


FLAGS = [
    "--out",
    "--checkpoint_every",
    "--unseen",
    "--model.language",
    "--model.lora.r",
    "--model.vision.blocks",
    "--model.learning_rate",
    "--data.train.text",
    "--data.train.text_fraction",
    "--data.max_length",
    "--config",
    "--trainer.max_epochs",
    "--trainer.callbacks",
    "--trainer.logger",
    "--seed_everything",
    "--data",
    "--model",
]
VALUES = ["", "null", "nan", "-1", "1e999", "[", "{", "[[[[", '["a", 1]', "{a: 1}", "~nobody-of-this-name", "x" * 5000,
          "true", "9" * 5000, "package:__main__/x", "!!python/name:os.system", "&a [*a]", "../.."]  # fmt: skip


@pytest.mark.parametrize("few", [10, pytest.param(len(FLAGS) * len(VALUES), marks=pytest.mark.slow)])
def test_odd_values_of_flags(few: int, cases: Cases) -> None:
    pairs = [(flag, value) for flag in FLAGS for value in VALUES]
    random.Random(0).shuffle(pairs)
    for flag, value in pairs[:few]:
        cases.run(f"{flag}={value[:60]}", partial(parse_training, ["fit", f"{flag}={value}"]))
