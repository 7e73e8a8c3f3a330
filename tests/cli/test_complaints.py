"""A wrong flag, key or value is named, with what to write instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import command_lines
import pytest

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError

HELP = "(mmtune fit --help lists the flags)"


@pytest.fixture(scope="module")
def parser() -> Any:
    """That of `mmtune fit` and `mmtune validate`, made once."""
    return command_lines.parse_training(["fit", "--config=quickstart"]).parser


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.lerning_rate=1"], "--model.lerning_rate: no such flag; did you mean '--model.learning_rate'?"),
        (["--trainer.max_stepz", "1"], "--trainer.max_stepz: no such flag; did you mean '--trainer.max_steps'?"),
        (["--zzz"], "--zzz: no such flag"),
        (["--model.stage=tun"], "--model.stage tun: choose one of: align, tune"),
        (["--model.quantise=4"], "--model.quantise 4: choose one of: nf4, int8"),
        (["--model.lora.rank=4"], "--model.lora.rank: no such key; --model.lora.help lists them"),
        (["--model.learning_rate=fast"], "--model.learning_rate fast: must be a number"),
        (["--data.max_length=long"], "--data.max_length long: must be a whole number"),
        (["--data.truncate=perhaps"], "--data.truncate perhaps: must be true or false"),
        (["--data.train.text=a.jsonl"], "--data.train.text a.jsonl: must be a list; write '[\"a.jsonl\"]'"),
        (["--data.train.text=[a]", "b"], "b: belongs to no flag; quote a value that holds spaces, and write lists as"),
    ],
)
def test_a_wrong_flag_of_fit(flags: list[str], said: str, parser: Any) -> None:
    with pytest.raises(UserError) as error:
        parser.parse_args(["fit", *flags])
    assert str(error.value).startswith(said)
    assert str(error.value).endswith(HELP)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {lerning_rate: 1}", "model.lerning_rate: no such key; did you mean 'model.learning_rate'?"),
        ("data: {train: {txt: [a]}}", "data.train.txt: no such key; did you mean 'data.train.text'?"),
        ("model:\nbase: runs/x", "base: no such key; it belongs to 'model': put it below that, further to the right"),
        ("model: {lora: {rank: 4}}", "model.lora.rank: no such key; --model.lora.help lists them"),
        ("model: {stage: tun}", "model.stage tun: choose one of: align, tune"),
        ("data: {train: {text: a.jsonl}}", "data.train.text a.jsonl: must be a list; write [a.jsonl]"),
    ],
)
@pytest.mark.parametrize("form", ["--config {}", "--config={}", "-c {}"])
def test_a_wrong_key_of_a_config_is_named_with_the_file(
    text: str, said: str, form: str, parser: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parser.parse_args(["fit", *form.format(file).split(" ")])
    assert str(error.value) == f"--config {file}: {said} {HELP}"


def test_the_config_that_holds_the_key_is_named(parser: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.yaml").write_text("data: {max_length: long}" if name == "b" else "model: {stage: tune}")
    configs = [f"--config={tmp_path / name}.yaml" for name in ("a", "b", "c")]
    with pytest.raises(UserError, match=rf"^--config {tmp_path}/b.yaml: data.max_length long: "):
        parser.parse_args(["fit", *configs])
    with pytest.raises(UserError, match=r"^--data.max_length wide: "):
        parser.parse_args(["fit", configs[0], "--data.max_length=wide"])


@dataclass
class Options:
    """Do a thing.

    Attributes:
        out: where to.
        batch_tokens: how many at once.
        way: how.
    """

    out: str
    batch_tokens: int | None = None
    way: Literal["up", "down"] | None = None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch-tokenz=1"], "--batch-tokenz: no such flag; did you mean '--batch-tokens'? (mmtune thing --help"),
        (["--batch-tokens=ten"], "--batch-tokens ten: must be a whole number (mmtune thing --help"),
        (["--way=left"], "--way left: choose one of: up, down (mmtune thing --help"),
        (["runs/x"], "runs/x: belongs to no flag;"),
    ],
)
def test_a_wrong_flag_of_the_other_commands(flags: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse(build_parser("thing", Options), Options, ["--out=x", *flags])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_help_begins_with_what_is_ours(command: str, parser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args([command, "--help"])
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: mmtune {command} [--config NAME]")
    flags = ["--out OUT", "--model.stage", "--data.train.text", "--trainer.devices"]
    places = [help_text.index(flag) for flag in flags]
    assert places == sorted(places)
