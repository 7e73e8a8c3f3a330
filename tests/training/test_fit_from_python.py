"""`mmtune.fit` is `mmtune fit`: the same weights, files, resuming and errors."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

import mmtune
from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.common.signals import Terminated
from mmtune.data.sources.in_memory import rows_file
from mmtune.models.spec import LoraOptions

Same = Callable[[Path, Path], None]
Fit = Callable[..., int]

TRAINER: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def model(llama: Path) -> dict[str, Any]:
    lora = {"r": 4, "alpha": 8, "dropout": 0.1}
    return {"language": str(llama), "template": "chatml", "learning_rate": 0.01, "lora": lora}


def data(file: Path) -> dict[str, Any]:
    return {"train": {"text": [str(file)]}, "max_length": 256}


def test_weights_and_files_are_those_of_the_command_line(
    fit: Fit, lora_flags: list[str], model: dict[str, Any], text_rows: Path, tmp_path: Path, same_weights: Same
) -> None:
    flags = [f"--data.train.text=[{text_rows}]", "--trainer.max_steps=6", "--checkpoint_every=3"]
    assert fit(tmp_path / "cli", *lora_flags, *flags) == 0
    run = mmtune.fit(model, data(text_rows), tmp_path / "python", checkpoint_every=3, max_steps=6, **TRAINER)
    same_weights(tmp_path / "cli", run.path)
    cli, python = (
        {str(file.relative_to(folder)) for file in folder.rglob("*") if "tfevents" not in file.name}
        for folder in (tmp_path / "cli", run.path)
    )
    assert cli == python
    ledger = json.loads((tmp_path / "cli" / "ledger.json").read_text())
    for name in ("steps", "samples", "tokens", "flops", "tower_passes", "params"):
        assert ledger[name] == run.ledger[name], name
    assert ledger["steps"] == 6
    logs = [list(csv.DictReader((p / "metrics.csv").open())) for p in (tmp_path / "cli", run.path)]
    timeless = [[{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows] for rows in logs]
    assert timeless[0] == timeless[1]
    assert len(logs[0]) == 6
    assert (tmp_path / "cli" / "data.json").read_text() == (run.path / "data.json").read_text()
    # its config does it again
    assert main(["fit", "--config", str(run.path / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    same_weights(tmp_path / "again", run.path)
    with pytest.raises(UserError, match="holds a finished run; choose another folder"):
        mmtune.fit(model, data(text_rows), run.path, max_steps=6, **TRAINER)


class Interrupt(pl.Callback):
    """Ends a run in the middle of a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 5:
            raise RuntimeError("the machine went down")


def test_a_run_goes_on_exactly(
    model: dict[str, Any], text_rows: Path, tmp_path: Path, same_weights: Same, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"checkpoint_every": 2, "max_steps": 8, **TRAINER}
    whole = mmtune.fit(model, data(text_rows), tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="the machine went down"):
        mmtune.fit(model, data(text_rows), tmp_path / "run", callbacks=[Interrupt()], **options)
    run = mmtune.fit(model, data(text_rows), tmp_path / "run", **options)
    assert f"Resuming {tmp_path / 'run'} after step 4 from its last checkpoint." in capsys.readouterr().err
    same_weights(whole.path, run.path)


def test_rows_in_memory_are_rows_of_a_file(
    model: dict[str, Any], text_rows: Path, tmp_path: Path, same_weights: Same
) -> None:
    import datasets
    import pandas

    rows = [json.loads(line) for line in text_rows.read_text().splitlines()]
    given = {
        "list": rows,
        "dataset": datasets.Dataset.from_list(rows),
        "frame": pandas.DataFrame(rows),
        "path": text_rows,
        "paths": [str(text_rows)],
        "options": {"train": {"text": rows}},
    }
    runs = {
        name: mmtune.fit(model, one, tmp_path / name, max_steps=2, checkpoint_every=0, **TRAINER)
        for name, one in given.items()
    }
    for run in runs.values():
        same_weights(runs["list"].path, run.path)
    assert len({str(rows_file(one)) for one in (rows, given["dataset"], given["frame"])}) == 1
    assert rows_file(rows[1:]) != rows_file(rows)


def test_empty_cells_of_a_frame_are_null(tmp_path: Path) -> None:
    import numpy as np
    import pandas

    frame = pandas.DataFrame({"prompt": ["a", "b"], "system": ["s", None], "n": [1.0, np.nan]})
    lines = [json.loads(line) for line in rows_file(frame).read_text().splitlines()]
    assert lines == [{"prompt": "a", "system": "s", "n": 1.0}, {"prompt": "b", "system": None, "n": None}]


def test_options_may_be_objects_and_are_written_down(model: dict[str, Any], text_rows: Path, tmp_path: Path) -> None:
    model["lora"] = LoraOptions(r=2)
    run = mmtune.fit(model, data(text_rows), tmp_path / "run", max_steps=1, checkpoint_every=0, **TRAINER)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["model"]["lora"]["r"] == 2
    assert (config["trainer"]["max_steps"], config["out"]) == (1, str(run.path))
    tuned = mmtune.fit(run.path, data(text_rows), tmp_path / "tuned", max_steps=1, checkpoint_every=0, **TRAINER)
    assert yaml.safe_load((tuned.path / "config.yaml").read_text())["model"]["base"] == str(run.path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": {"languge": "x"}}, "model: there is no option 'languge'; did you mean 'language'"),
        ({"model": 3}, "model: is a int; give a path, a hub id, or a dict of options"),
        ({"model": {"lora": {"rank": 3}}}, "model.lora: there is no option 'rank'"),
        ({"max_step": 3}, "trainer: there is no option 'max_step'; did you mean 'max_steps'"),
        ({"max_steps": -3}, "--trainer.max_steps -3: must be at least -1"),
        ({"data": {"trian": {}}}, "data: there is no option 'trian'; did you mean 'train'"),
        ({"data": {"train": {"txt": []}}}, "data.train: there is no option 'txt'; did you mean 'text'"),
        ({"data": 3}, "data: is a int; give a list of dicts"),
        ({"data": []}, "data: there are no rows"),
        ({"data": [{"prompt": "a"}, 3]}, "data, row 2: is a int; give a dict"),
        ({"data": [{"prompt": object()}]}, "data, row 1: a value is a builtins.object; give text"),
        ({"data": [{"prompt": "a"}]}, r"rows/\w+\.jsonl, row 1"),
    ],
)
def test_mistakes_are_named(
    model: dict[str, Any], text_rows: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    options = {"model": model, "data": data(text_rows), "max_steps": 1, **TRAINER, **given}
    with pytest.raises(UserError, match=message):
        mmtune.fit(options.pop("model"), options.pop("data"), tmp_path / "run", **options)
    assert not (tmp_path / "run" / "model").exists()


class Signal(pl.Callback):
    """Sends a signal to this process."""

    def __init__(self, number: int, place: str) -> None:
        self.number, self.place = number, place

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.place == "before":
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.place == "step" and trainer.global_step == 2:
            os.kill(os.getpid(), self.number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.place == "end":
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("place", ["before", "step", "end"])
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_are_exceptions(
    model: dict[str, Any], text_rows: Path, tmp_path: Path, number: int, kind: type[BaseException], place: str
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    options: dict[str, Any] = {"max_steps": 4, **TRAINER}
    with pytest.raises(kind) as caught:
        mmtune.fit(model, data(text_rows), tmp_path / "run", callbacks=[Signal(number, place)], **options)
    if kind is Terminated:
        assert caught.value.code == 143  # type: ignore[attr-defined]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() == (place != "before")
    assert (tmp_path / "run" / "model").exists() == (place == "end")
    if place != "end":
        assert mmtune.fit(model, data(text_rows), tmp_path / "run", **options).ledger["steps"] == 4
