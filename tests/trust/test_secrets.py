"""Passwords and keys in configs are neither written, nor sent to loggers, nor shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_lines import parse_training

from mmtune.cli.main import main
from mmtune.cli.shared.config_checks import check_config
from mmtune.common.errors import UserError
from mmtune.common.masking import MASK, is_secret, masked, masked_address, masked_text, remember
from mmtune.evaluation.run import results
from mmtune.training.callbacks import ledger

KEY, PASSWORD = "k3y-0f-the-service", "pa55word"


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "X-Api-Key", "HF_TOKEN", "token", "db_password", "passwd", "Authorization", "auth",
             "client_secret", "aws_secret_access_key", "aws_access_key_id", "sas_token", "credentials", "private_key"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    assert masked({"a": [{name: KEY}, {name: [KEY]}, {name: {"x": KEY}}]}) == {
        "a": [{name: MASK}, {name: [MASK]}, {name: {"x": MASK}}]
    }


def test_no_option_of_the_command_is_taken_for_a_secret() -> None:
    cli = parse_training(["fit", "--model.language=a", "--data.train.text=[a]"])
    names = [action.dest for action in cli._subcommand_parsers["fit"]._actions]
    assert not [name for name in names if is_secret(name.rpartition(".")[2])]
    plain = {"pack_tokens": "3", "tokenizer": "a", "experiment_key": "a", "author": "a", "key": "a", "max_tokens": "1"}
    assert masked(plain) == plain


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://me:{PASSWORD}@host:5000/x", f"http://{MASK}@host:5000/x"),
        (f"postgresql+psycopg2://me:{PASSWORD}/@#@db/x", f"postgresql+psycopg2://{MASK}@db/x"),
        (f"https://{KEY}@host", f"https://{MASK}@host"),
        (f"https://host/a?b=1&token={KEY}&c=2", f"https://host/a?b=1&token={MASK}&c=2"),
        (f"https://host/a?X-Amz-Credential={KEY}&X-Amz-Signature={KEY}",
         f"https://host/a?X-Amz-Credential={MASK}&X-Amz-Signature={MASK}"),
        (f"https://host/a?sv=1&sig={KEY}", f"https://host/a?sv=1&sig={MASK}"),
        (f"see http://a:{PASSWORD}@b and 's3://c:{PASSWORD}@d'", f"see http://{MASK}@b and 's3://{MASK}@d'"),
        ("http://localhost:5000/a@b", "http://localhost:5000/a@b"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("a@b.c: keep=1", "a@b.c: keep=1"),
    ],
)  # fmt: skip
def test_credentials_in_addresses(address: str, shown: str) -> None:
    assert masked_address(address) == shown
    assert masked_address(shown) == shown
    assert str(UserError(f"x: {address}")) == f"x: {shown}"


def test_a_secret_that_is_known_is_masked_wherever_it_is_quoted() -> None:
    remember({"logger": {"api_key": KEY, "name": "run", "token": "ab"}})
    assert masked_text(f"401: {KEY!r} ab run") == f"401: {MASK!r} ab run"


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A logger that takes secrets, and writes down all that it is told."""
    name = f"spy_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from lightning.pytorch.loggers.logger import DummyLogger\n"
        "class Spy(DummyLogger):\n"
        "    def __init__(self, api_key: str, tracking_uri: str):\n"
        "        super().__init__()\n"
        f"        assert api_key == {KEY!r} and {PASSWORD!r} in tracking_uri\n"
        "    def log_hyperparams(self, params, *args):\n"
        f"        open({str(tmp_path / 'told')!r}, 'a').write(repr(params))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_secrets_of_a_config_reach_no_file_and_no_terminal(
    spy: str, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", KEY)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    secrets = {"api_key": KEY, "tracking_uri": f"http://me:{PASSWORD}@host"}
    config = {
        "model": {"language": str(llama), "template": "chatml", "lora": {"r": 2}},
        "data": {"train": {"text": [str(tmp_path / "rows.jsonl")]}},
        "trainer": {"accelerator": "cpu", "logger": {"class_path": f"{spy}.Spy", "init_args": secrets}},
    }
    file, run = tmp_path / "own.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    flags = ["--trust_code", spy, "--checkpoint_every", "1", "--out", str(run)]
    assert main(["fit", "--config", str(file), *flags]) == 0
    said = capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), *flags, "--print_config"])
    printed = capfd.readouterr()
    written = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "ledger.json", "metrics.csv", "last.ckpt"} <= {path.name for path in written}
    for text in (*(path.read_bytes() for path in written), (tmp_path / "told").read_bytes(), *said, *printed):
        whole = text if isinstance(text, bytes) else text.encode()
        assert KEY.encode() not in whole
        assert PASSWORD.encode() not in whole
    logger = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    assert logger == {"api_key": MASK, "tracking_uri": f"http://{MASK}@host"}
    assert logger == yaml.safe_load(printed.out)["trainer"]["logger"]["init_args"]
    # the run again, from what it wrote: not silently without the secrets
    again = ["fit", "--config", str(run / "config.yaml"), "--trust_code", spy, "--out", str(tmp_path / "again")]
    assert main(again) == 2
    refusal = capfd.readouterr().err
    assert f"--config {run / 'config.yaml'}: trainer.logger.init_args.api_key: a secret stood here" in refusal
    assert not (tmp_path / "again").exists()
    given = [f"--trainer.logger.init_args.{name}={value}" for name, value in secrets.items()]
    assert main([*again, *given]) == 0


def test_no_variable_of_the_environment_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*os.environ, "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"} - {"PYTEST_CURRENT_TEST"}:
        monkeypatch.setenv(name, KEY)
    record = [ledger.versions(), ledger.hardware(torch.device("cpu"), 1), results.versions()]
    assert KEY not in json.dumps(record)
    assert len(record[0]) > 5


@pytest.fixture(scope="module")
def command() -> Any:
    return parse_training(["fit", "--model.language=a", "--data.train.text=[a]"])


@pytest.mark.parametrize(
    "logger",
    [f"{{class_path: CSVLogger, init_args: {{save_dir: a, prefix: 'http://me:{PASSWORD}@host'}}}}",
     f"{{class_path: CSVLogger, init_args: {{save_dir: a, name: 'http://host?token={PASSWORD}'}}}}",
     f"{{class_path: TensorBoardLogger, init_args: {{save_dir: 's3://me:{PASSWORD}@host/a'}}}}"],
)  # fmt: skip
def test_credentials_that_a_logger_would_write_are_refused(logger: str, command: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"trainer: {{logger: {logger}}}")
    words = ["fit", "--config", str(file), "--model.language=a", "--data.train.text=[a]"]
    with pytest.raises(UserError, match=r"config\.yaml: trainer\.logger\.init_args\.\w+: holds credentials") as refusal:
        check_config(command.parser.parse_args(words).fit, words)
    assert PASSWORD not in str(refusal.value)


def test_what_is_said_of_a_wrong_value_holds_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"trainer: {{logger: {{class_path: CometLogger, init_args: {{api_key: {KEY}, online: {KEY}, x: 1}}}}}}"
    )
    needed = ["--model.language=a", "--data.train.text=[a]"]
    assert main(["fit", "--config", str(file), *needed]) == 2
    assert main(["fit", *needed, f"--trainer.logger.api_key={PASSWORD}", f"--trainer.max_epochs={PASSWORD}"]) == 2
    assert main(["fit", *needed, "--trainer.logger.api_key", PASSWORD, f"--nope={PASSWORD}"]) == 2
    said = "".join(capsys.readouterr())
    assert KEY not in said
    assert PASSWORD not in said
