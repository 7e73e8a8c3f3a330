"""What `mmtune fit` refuses: one line that names what is wrong, and exit 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtune.cli.main import main

Fit = Callable[..., int]
Read = Callable[[Path, str], Any]


def test_bad_rows_are_left_out_and_reported(
    fit: Fit, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_run: Read
) -> None:
    rows = tmp_path / "rows.jsonl"
    long = json.dumps({"prompt": "x" * 500, "completion": "y"})
    rows.write_text(text_rows.read_text() + "{broken\n" + long + "\n" + '{"prompt": "a", "completion": ""}\n')
    flags = [f"--data.train.text=[{rows}]", "--model.lora.r=2"]
    for number, part in ((41, "not valid JSON"), (42, "would be cut off"), (43, "empty")):
        only = tmp_path / f"only_{number}.jsonl"
        only.write_text(
            "\n".join([text_rows.read_text().splitlines()[0], rows.read_text().splitlines()[number - 1]]) + "\n"
        )
        assert fit(tmp_path / "none", f"--data.train.text=[{only}]", "--model.lora.r=2") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{only}, row 2" in error
        assert part in error
    assert fit(tmp_path / "run", *flags, "--data.on_bad_row=skip") == 0
    assert "Left out 3 rows" in capsys.readouterr().out
    record = read_run(tmp_path / "run", "data.json")["bad_rows"]
    assert record["count"] == 3
    assert sorted(int(m.split("row ")[1].split(":")[0]) for m in record["messages"]) == [41, 42, 43]
    assert read_run(tmp_path / "run", "ledger.json")["samples"] == 40


def one_row(folder: Path, **changes: Any) -> str:
    row = {
        "image": "photo.png",
        "conversations": [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}],
    }
    (folder / "rows.json").write_text(json.dumps([row | changes]))
    return f"--data.train.visual=[{folder / 'rows.json'}]"


def test_photos_that_cannot_be_used_are_named(
    fit: Fit, vision_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = one_row(tmp_path)
    for content, message in (
        (None, "does not exist"),
        (b"no picture", "not a picture"),
        (b"", "not a picture"),
    ):
        if content is not None:
            (tmp_path / "photo.png").write_bytes(content)
        assert fit(tmp_path / "run", source, "--model.stage=align", *vision_flags) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "rows.json, row 1" in error
        assert message in error
    assert fit(tmp_path / "run", source, "--model.lora.r=2") == 2  # and a model without a tower
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.train.text=[missing.jsonl]"], "missing.jsonl"),
        (["--data.train.text_fraction=1.5"], "text_fraction 1.5: must lie between 0"),
        (["--data.train.text_fraction=0.5"], "the mixture"),
        (["--data.train.total=4000"], "asks for 4000 text rows and the sources hold 40"),
        (["--data.train.total=0"], "total 0: must be at least 1"),
        (["--data.train.text=[]"], "no training data"),
        (["--data.max_length=10"], "--data.max_length 10"),
        (["--data.max_length=300", "--data.pack_tokens=200"], "--data.pack_tokens 200"),
        (["--data.validation_fraction=1"], "--data.validation_fraction 1"),
        (["--model.template=vicuna"], "did you mean 'vicuna_v1'"),
        (["--model.template=tokenizer"], "carries no chat template"),
        (["--model.lora.targets=[query]"], "--model.lora.targets query"),
        (["--model.lora.r=0"], "--model.lora.r 0"),
        (["--model.stage=align"], "--model.vision"),
        (["--model.stage=alin"], "alin"),
        (["--model.language=./no/such/model"], "./no/such/model: no such file or folder"),
        (["--model.base=./no/such/run"], "--model.base"),
        (["--model.vision.tower=timm:test_vit", "--model.vision.weights=gone.pth"], "gone.pth: no such file"),
        (["--model.vision.tower=timm:tset_vit"], "did you mean 'test_vit"),
        (["--model.learnig_rate=1"], "learnig_rate"),
        (["--data.pack_rowz=1"], "pack_rowz"),
        (["--trainer.max_epochz=1"], "max_epochz"),
        (["--trainer.max_epochs=-1"], "--trainer.max_epochs -1"),
        (["--trainer.max_epochs=x"], "max_epochs"),
        (["--trainer.strategy=deepspeed"], "--trainer: "),
        (["--trainer.strategy=nope"], "--trainer: "),
        (["--trainer.devices=0"], "--trainer: "),
        (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches 0"),
        (["--checkpoint_every=-1"], "--trainer: "),
        (["--trainer.val_check_interval=500"], "--trainer.val_check_interval 500"),
        (["--model.learning_rate=-1"], "--model.learning_rate -1"),
        (["--model.learning_rate=.inf"], "--model.learning_rate inf"),
        (["--model.projector_learning_rate=-1"], "--model.projector_learning_rate -1"),
        (["--model.weight_decay=-1"], "--model.weight_decay -1"),
        (["--model.optimizer=adam"], "adamw_8bit"),
        (["--model.warmup=2"], "--model.warmup 2"),
        (["--data.max_length=0"], "--data.max_length 0"),
        (["--data.on_bad_row=maybe"], "on_bad_row"),
        (["--data.train.text_fraction=2"], "--data.train.text_fraction 2"),
        (["--model.language=package:a.b/c"], "package:a.b/c"),
        (["--model.language=/no/such/folder"], "/no/such/folder"),
        (["--ckpt_path=none.ckpt"], "none.ckpt: no such file"),
        (["--ckpt_path=pyproject.toml"], "pyproject.toml: a damaged checkpoint"),
        (["--no_such_flag"], "no_such_flag"),
        (["--config=no_such_config"], "no_such_config"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    fit: Fit,
    text_rows: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = [f"--data.train.text=[{text_rows}]", "--model.lora.r=2"]
    assert fit(tmp_path / "run", *first, *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.lora.targets=[query]", "--model.lora.targets query"),
        ("--model.vision.weights=gone.pth", "gone.pth: no such file"),
        ("--model.language={folder}", "there is none of model.safetensors"),
    ],
)
def test_a_missing_part_is_found_before_the_rows_are_read(
    fit: Fit,
    llama: Path,
    vision_flags: list[str],
    tmp_path: Path,
    flag: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "language"
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    rows = "--data.train.text=[no_rows.jsonl]"
    assert fit(tmp_path / "run", *vision_flags, rows, "--model.lora.r=2", flag.format(folder=folder)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML"),
        (b"- 1", "holds no keys and values"),
        (b"", "holds no keys and values"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"modle: {stage: align}", "modle"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert main(["fit", "--config", str(file)]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert message in error
    assert "mine.yaml" in error or "modle" in error


@pytest.mark.parametrize("out", ["/proc/none", "FILE/below", "FILE"])
def test_a_place_that_cannot_be_written_to(
    out: str, fit: Fit, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = out.replace("FILE", str(tmp_path / "file"))
    assert fit(Path(out), f"--data.train.text=[{text_rows}]", "--model.lora.r=2") == 2
    assert f"--out {out}: " in capsys.readouterr().err.splitlines()[-1]


def test_data_of_the_wrong_shape_is_named(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.json"
    for content in ('{"a": 1}', "[1, 2]", '[{"a": 1}]', "[", "", "[]"):
        file.write_text(content)
        assert fit(tmp_path / "run", f"--data.train.text=[{file}]", "--model.lora.r=2") == 2
        assert "wrong.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "for a full finetune use deepspeed"), (["--model.lora.r=2", "--model.quantise=nf4"], "--model.quantise nf4")],
)
def test_what_fsdp_cannot_divide(
    fit: Fit, text_rows: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["--config=fsdp", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    assert fit(tmp_path / "run", f"--data.train.text=[{text_rows}]", *two, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data.max_length=8192"], "--data.max_length 8192: "),
        (["--model.stage=align", "--model.lora.r=4"], "--model.lora: the align stage trains the projector alone"),
        (
            [
                "--trainer.callbacks=lightning.pytorch.callbacks.GradientAccumulationScheduler",
                "--trainer.callbacks.scheduling={0: 2}",
            ],
            "GradientAccumulationScheduler: a step's tokens are counted ahead",
        ),
    ],
)
def test_what_would_not_do_what_it_says(
    fit: Fit,
    vision_flags: list[str],
    text_rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    assert fit(tmp_path / "run", f"--data.train.text=[{text_rows}]", *vision_flags, *flags) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", ["", ", init_args: {save_distributed_checkpoint: true}"], ids=["by default", "asked for"]
)
def test_checkpoints_in_parts_that_lack_frozen_weights_are_refused_at_the_start(
    given: str, fit: Fit, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts.yaml").write_text(f"trainer: {{strategy: {{class_path: ModelParallelStrategy{given}}}}}")
    flags = [f"--config={tmp_path / 'parts.yaml'}", f"--data.train.text=[{text_rows}]", "--model.lora.r=2"]
    assert fit(tmp_path / "run", *flags) == 2
    assert "save_distributed_checkpoint: false" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_devices_that_are_none_are_refused(
    fit: Fit, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--data.train.text=[{text_rows}]", "--model.lora.r=2", "--trainer.devices=os.system"]
    assert fit(tmp_path / "run", *flags) == 2
    assert "--trainer: `devices`" in capsys.readouterr().err.splitlines()[-1]
