"""`mmtune plan` needs no weights, no GPU and no data, and agrees with the run that follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmtune.cli.main import main
from mmtune.cli.plan import make_plan
from mmtune.training.module import InstructionTuning

NUMBERS = ["--rows=80000", "--text_tokens=300", "--answer_tokens=80"]
LANGUAGE, VISUAL = "100 % language", "100 % visual"


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `mmtune plan`: what it wrote as JSON, and what it printed."""

    def run(*flags: str) -> tuple[dict[str, Any], str]:
        file = tmp_path / "plan.json"
        assert main(["plan", *flags, f"--json={file}"]) == 0
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def by(found: dict[str, Any], method: str, rows: str = LANGUAGE) -> dict[str, Any]:
    (one,) = [e for e in found["estimates"] if (e["method"], e["rows"]) == (method, rows)]
    return one


def tiny(folder: Path, *flags: str) -> list[str]:
    return [f"--model.language={folder}", "--model.template=chatml", "--data.max_length=512", *flags]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"Say {i}" * (i % 7), "completion": "x" * (5 + i % 11)}) for i in range(40)]
    file.write_text("\n".join(lines))
    return file


def test_a_recipe_is_planned_where_nothing_of_it_is(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, said = plan("--config", "vicuna_7b_lora", *NUMBERS)
    assert found["method"] == "LoRA"
    assert by(found, "LoRA")["params"]["trainable"] == 319_815_680 + 20_979_712
    assert by(found, "full")["params"]["total"] == 6_738_415_616 + 304_293_888 + 20_979_712
    language, visual = found["work"]
    assert (language["count"], language["tokens"]["text"]) == (80_000, 24_000_000)
    assert visual["tokens"] == {"text": 24_000_000, "image": 576 * 80_000, "supervised": 6_400_000}
    assert language["steps"] == visual["steps"] == 80_000 // 64
    assert by(found, "LoRA")["flops"]["tower"] == by(found, "LoRA")["flops"]["projector"] == 0
    assert by(found, "LoRA", VISUAL)["flops"]["tower"] > 0
    # attention aside, operations are as the tokens: 876 to 300
    assert found["visual_over_language"]["LoRA"] == pytest.approx(876 / 300, rel=0.05)
    memory = {m: by(found, m)["memory_bytes"]["gpu"]["peak"] for m in ("QLoRA", "LoRA", "full")}
    assert memory["QLoRA"] < memory["LoRA"] < memory["full"]
    assert not by(found, "full")["cards"]["A100 80GB"]["fits"]
    assert by(found, "QLoRA")["cards"]["RTX 4090"]["fits"]
    assert "too much" in said
    assert "published shape" in said


def test_eight_gpus_are_asked_for_on_a_machine_without(llama: Path) -> None:
    flags = ["--trainer.accelerator=gpu", "--trainer.devices=8", "--trainer.strategy=fsdp"]
    one, eight = (make_plan([*tiny(llama), *NUMBERS, "--compared=false", *more])[1] for more in ([], flags))
    (alone,), (divided,) = one.estimates, eight.estimates
    assert (alone.method, divided.method) == ("full", "full")
    assert divided.gpu.trained == pytest.approx(alone.gpu.trained * 16 / 12 / 8, rel=0.01)
    card, devices = one.cards[0], eight.schedule.devices
    assert divided.seconds(card, eight.dtype, devices) == pytest.approx(alone.seconds(card, one.dtype, 1) / 8)


@pytest.mark.parametrize("method", ["LoRA", "full"])
def test_operations_are_what_torch_counts_in_the_run(
    plan: Any, llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    flags = tiny(llama, f"--data.train.text=[{rows}]", "--trainer.max_epochs=2")
    flags += ["--model.lora.r=4", "--model.lora.dropout=0"] if method == "LoRA" else []
    found, _ = plan(*flags)
    counted = 0
    step = InstructionTuning.training_step

    def counting(module: InstructionTuning, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal counted
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss = step(module, batch, batch_idx)
            torch.autograd.grad(
                loss, [p for p in module.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
            )
        counted += counter.get_total_flops()
        return loss

    monkeypatch.setattr(InstructionTuning, "training_step", counting)
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--out={tmp_path / 'run'}"]
    assert main(["fit", *flags, *quiet]) == 0
    assert sum(by(found, method)["flops"].values()) == pytest.approx(counted, rel=0.01)
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert by(found, method)["flops"] == ledger["flops"]
    assert {k: ledger["tokens"][k] for k in ("text", "image", "supervised")} == found["work"][0]["tokens"]
    assert ledger["params"] == by(found, method)["params"]
    assert ledger["steps"] == found["work"][0]["steps"]


@pytest.fixture(scope="module")
def modest_llama(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 million weights, so that weights and activations are far above what the libraries take."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("modest")
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    config = LlamaConfig.from_pretrained(
        llama,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_memory_is_what_the_run_takes(modest_llama: Path, tmp_path: Path) -> None:
    row = {"prompt": "Say it. " * 50, "completion": "yes " * 30}
    (tmp_path / "rows.jsonl").write_text(
        "\n".join([json.dumps(row)] * 6)
    )  # two like packs, so that moments meet a full one
    flags = tiny(modest_llama, f"--data.train.text=[{tmp_path / 'rows.jsonl'}]", "--data.max_length=2048")
    adapters = ["--model.lora.r=16"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # glibc otherwise comes to keep what is freed, in pieces that fit nothing: half as much again as tensors take
    for_memory = {"MALLOC_MMAP_THRESHOLD_": "131072"}

    def run(command: str, *arguments: str, **more: str) -> None:
        words = [sys.executable, "-m", "mmtune.cli.main", command, *flags, *arguments]
        done = subprocess.run(words, env=environment | more, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    run("plan", *adapters, f"--json={tmp_path / 'planned.json'}")
    planned = json.loads((tmp_path / "planned.json").read_text())
    for method, more in (("LoRA", adapters), ("full", [])):
        run("fit", *more, *quiet, f"--out={tmp_path / method}", **for_memory)
        measured = json.loads((tmp_path / method / "ledger.json").read_text())["peak_memory_bytes"]["host"]
        memory = by(planned, method)["memory_bytes"]["cpu"]
        assert memory["working"] > memory["libraries"], method
        assert memory["peak"] == pytest.approx(measured, rel=0.15), method


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.train.text=[nowhere.jsonl]"], "--rows, --text_tokens and --answer_tokens"),
        ([], "--rows, --text_tokens and --answer_tokens"),
        (["--rows=10"], "--text_tokens: missing"),
        (["--rows=0", "--text_tokens=10", "--answer_tokens=2"], "--rows 0: must be at least 1"),
        (["--rows=9", "--text_tokens=10", "--answer_tokens=10"], "--answer_tokens 10: are part of --text_tokens 10"),
        (["--rows=9", "--no_such_flag=1"], "no_such_flag"),
    ],
)
def test_what_is_missing_is_named(llama: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert main(["plan", *tiny(llama), *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
