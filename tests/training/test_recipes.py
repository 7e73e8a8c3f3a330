"""`mmtune.recipe`: every shipped config as arguments of `mmtune.fit`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

import mmtune
from mmtune.common.errors import UserError

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "config_goldens.json").read_text())
RENAMED = {"seed_everything": "seed"}


@pytest.mark.parametrize("name", GOLDENS)
def test_a_shipped_config_is_arguments_of_fit(name: str) -> None:
    settings = GOLDENS[name]
    trainer = settings.get("trainer", {})
    classes = {key: object() for key, value in trainer.items() if isinstance(value, dict) and "class_path" in value}
    name = name.split("/")[-1]
    found = mmtune.recipe(name, **classes)
    others = {RENAMED.get(key, key): value for key, value in settings.items() if key != "trainer"}
    assert found == {**others, **trainer, **classes}
    taken = {*inspect.signature(mmtune.fit).parameters, *inspect.signature(pl.Trainer).parameters}
    assert found.keys() <= taken
    for key in classes:
        with pytest.raises(UserError, match=rf"{name}.yaml: trainer.{key}: names the class lightning\..*, as {key}=…"):
            mmtune.recipe(name)


def test_the_config_of_a_run_does_it_again(
    fit: Any, lora_flags: list[str], text_rows: Path, tmp_path: Path, same_weights: Any
) -> None:
    flags = [f"--data.train.text=[{text_rows}]", "--trainer.max_steps=2", "--checkpoint_every=0"]
    assert fit(tmp_path / "cli", *lora_flags, *flags) == 0
    run = mmtune.fit(**mmtune.recipe(tmp_path / "cli" / "config.yaml", out=tmp_path / "python"))
    same_weights(tmp_path / "cli", run.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "holds no keys and values"),
        ("unseen: mlan9", "unseen: is not for Python"),
        ("modl: {}", "modl: is not for Python; did you mean 'model'"),
        ("trainer: {callbacks: [{class_path: x.Y}]}", "trainer.callbacks: names the class x.Y"),
    ],
)
def test_what_is_not_for_python_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        mmtune.recipe(tmp_path / "own.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        mmtune.recipe("quickstrt")
