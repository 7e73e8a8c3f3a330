"""`mmtune fit` from end to end."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmtune import VisionLanguageModel
from mmtune.cli.main import main
from mmtune.common.files import LOCK
from mmtune.models.spec import LoraOptions, ModelSpec

Fit = Callable[..., int]
Read = Callable[[Path, str], Any]
Same = Callable[[Path, Path], None]
Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without the features of the same photos that other modules' tests have stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def aligned(fit: Fit, vision_flags: list[str], visual_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "aligned"
    flags = [
        "--model.stage=align",
        f"--data.train.visual=[{visual_rows}]",
        "--data.pack_rows=2",
        "--trainer.max_epochs=3",
    ]
    assert fit(run, *flags, *vision_flags) == 0
    return run


@pytest.fixture(scope="module")
def tuned(
    fit: Fit,
    vision_flags: list[str],
    lora_flags: list[str],
    text_rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tuned"
    flags = [f"--data.train.text=[{text_rows}]", "--data.pack_rows=3", "--trainer.max_epochs=2"]
    assert fit(run, *flags, *vision_flags, *lora_flags, "--checkpoint_every=4") == 0
    return run


def test_the_run_directory_is_as_the_contract_says(tuned: Path, read_run: Read) -> None:
    names = {p.name for p in tuned.iterdir()}
    assert {"config.yaml", "model", "checkpoints", "ledger.json", "metrics.csv"} <= names
    assert {n for n in names if n.startswith(".")} <= {LOCK}  # no temporary file is left
    ledger = read_run(tuned, "ledger.json")
    assert {
        "wall_s", "train_s", "samples", "tokens", "flops", "tower_passes", "peak_memory_bytes", "energy_kwh", "params",
        "hardware", "versions",
    } <= set(ledger)  # fmt: skip
    assert set(ledger["tokens"]) == {"text", "image", "pad", "supervised"}
    assert set(ledger["flops"]) == {"language", "projector", "tower"}
    assert set(ledger["peak_memory_bytes"]) == {"host", "device"}
    assert set(ledger["params"]) == {"trainable", "total"}
    assert 0 < ledger["train_s"] <= ledger["wall_s"] < 600
    assert ledger["peak_memory_bytes"]["host"] > 50e6
    assert VisionLanguageModel.from_pretrained(tuned).answer(["hi"], max_tokens=2)


def test_text_never_runs_the_tower_and_every_token_is_counted(tuned: Path, text_rows: Path, read_run: Read) -> None:
    rows = [json.loads(line) for line in text_rows.read_text().splitlines()]
    markers = len("user\n\nassistant\n\n") + 4  # as text, and as tokens of their own
    tokens = sum(len(r["prompt"]) + len(r["completion"]) + markers for r in rows)
    supervised = sum(len(r["completion"]) + 1 for r in rows)
    ledger = read_run(tuned, "ledger.json")
    assert ledger["tower_passes"] == ledger["flops"]["tower"] == ledger["flops"]["projector"] == 0
    assert ledger["samples"] == 2 * len(rows)
    assert ledger["tokens"] == {"text": 2 * tokens, "image": 0, "pad": 0, "supervised": 2 * supervised}
    assert ledger["steps"] == 2 * -(-len(rows) // 3)


def test_metrics_have_every_step_once(tuned: Path, read_run: Read) -> None:
    with (tuned / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(r["step"]) for r in rows] == list(range(read_run(tuned, "ledger.json")["steps"]))
    losses = [float(r["train_loss"]) for r in rows]
    assert sum(losses[-5:]) < sum(losses[:5])  # it does learn


def test_aligning_trains_the_projector_alone(
    aligned: Path, vision_flags: list[str], weights_of: Weights, read_run: Read
) -> None:
    saved = weights_of(aligned)
    assert {n.split(":")[0] for n in saved} == {"model/projector.safetensors"}
    spec = json.loads((aligned / "model" / "mmtune.json").read_text())["spec"]
    first = VisionLanguageModel.assemble(ModelSpec.from_dict(spec, "here"))
    for name, tensor in first.projector.state_dict().items():  # type: ignore[union-attr]
        assert not torch.equal(saved[f"model/projector.safetensors:projector.{name}"], tensor)
    ledger = read_run(aligned, "ledger.json")
    assert ledger["params"]["trainable"] == sum(p.numel() for p in first.projector.parameters())  # type: ignore[union-attr]
    assert ledger["samples"] == 3 * 6
    assert ledger["tower_passes"] == 6  # each photo once, for all epochs
    assert ledger["tokens"]["image"] == 3 * 6 * 4
    assert ledger["flops"]["tower"] > 0


def test_tuning_trains_adapters_and_leaves_the_base_alone(tuned: Path, weights_of: Weights, llama: Path) -> None:
    adapters = {n: t for n, t in weights_of(tuned).items() if "lora_B" in n}
    assert len(adapters) == 14
    assert all(float(t.abs().max()) > 0 for t in adapters.values())
    model = VisionLanguageModel.from_pretrained(tuned)
    plain = VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml"))
    frozen = {n.replace(".base_layer", ""): p for n, p in model.base_language.named_parameters() if "lora_" not in n}
    for name, parameter in plain.language.named_parameters():
        assert torch.equal(frozen[name], parameter)


def test_an_aligned_model_is_tuned_on_a_mixture(
    fit: Fit, aligned: Path, lora_flags: list[str], text_rows: Path, visual_rows: Path, tmp_path: Path,
    base_flags: list[str], weights_of: Weights, read_run: Read,
) -> None:  # fmt: skip
    flags = [f for f in base_flags if not f.startswith(("--model.language", "--model.template"))]
    flags += [f"--data.train.text=[{text_rows}]", f"--data.train.visual=[{visual_rows}]"]
    flags += ["--data.validation_fraction=0.2", f"--model.base={aligned}", "--data.pack_rows=4"]
    assert fit(tmp_path / "run", *flags, *lora_flags, base=False) == 0
    before, after = weights_of(aligned), weights_of(tmp_path / "run")
    for name, tensor in before.items():
        change = float((after[name] - tensor).abs().max())
        assert (0 < change < 1e-3) if "projector." in name.split(":")[1] else change == 0
    ledger = read_run(tmp_path / "run", "ledger.json")
    assert ledger["tokens"]["image"] > 0
    assert ledger["tower_passes"] == 0  # the alignment has stored the photos' features
    assert ledger["params"]["trainable"] < ledger["params"]["total"]
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(r["step"]) for r in rows] == list(range(len(rows)))
    assert rows[-1]["val_loss"]


def test_a_full_finetune_is_saved_whole(fit: Fit, text_rows: Path, tmp_path: Path, read_run: Read) -> None:
    flags = [f"--data.train.text=[{text_rows}]", "--data.train.total=6"]
    assert fit(tmp_path / "run", *flags) == 0
    ledger = read_run(tmp_path / "run", "ledger.json")
    assert ledger["params"]["trainable"] == ledger["params"]["total"]
    assert (tmp_path / "run" / "model" / "language" / "model.safetensors").is_file()
    assert VisionLanguageModel.from_pretrained(tmp_path / "run").answer(["hi"], max_tokens=2)


def test_vicuna_on_a_sentencepiece_model(
    fit: Fit, sentencepiece_llama: Path, lora_flags: list[str], shared_data: Path, tmp_path: Path
) -> None:
    flags = [
        f"--model.language={sentencepiece_llama}",
        "--model.template=vicuna_v1",
        "--data.train.total=12",
        *lora_flags,
    ]
    rows = shared_data / "visual"
    sources = sorted(rows.glob("*.json"))
    if not sources:
        pytest.skip("needs the real rows in ../shared/data/visual")
    tower = ["--model.vision.tower=timm:test_vit", "--model.vision.weights=random", "--model.vision.grid=3"]
    flags += [
        f"--data.train.text=[{shared_data / 'text' / 'gsm8k_2000.jsonl'}]",
        f"--data.train.visual=[{sources[0]}]",
    ]
    flags += ["--data.train.text_fraction=0.5", "--data.max_length=2048", "--trainer.accelerator=cpu", *tower]
    assert fit(tmp_path / "run", *flags, base=False) == 0
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["tower_passes"] == 6
    assert ledger["tokens"]["image"] == 6 * 9
    assert VisionLanguageModel.from_pretrained(tmp_path / "run").answer(["hi"], max_tokens=2)


def test_flags_reach_what_they_name(fit: Fit, text_rows: Path, tmp_path: Path, read_run: Read) -> None:
    flags = [
        f"--data.train.text=[{text_rows}]",
        "--data.train.total=9",
        "--data.pack_rows=1",
        "--data.train.seed=7",
    ]
    flags += [
        "--model.lora.r=3",
        "--model.lora.targets=[q_proj]",
        "--model.lora.rslora=true",
        "--trainer.max_steps=4",
    ]
    assert fit(tmp_path / "run", *flags) == 0
    adapter = read_run(tmp_path / "run", "model/adapter/adapter_config.json")
    assert (adapter["r"], adapter["target_modules"], adapter["use_rslora"]) == (3, ["q_proj"], True)
    assert read_run(tmp_path / "run", "ledger.json")["samples"] == 4
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["train"]["seed"] == 7
    assert config["model"]["lora"]["targets"] == ["q_proj"]


def test_the_saved_config_repeats_the_run(
    fit: Fit, tuned: Path, tmp_path: Path, same_weights: Same, read_run: Read
) -> None:
    assert main(["fit", "--config", str(tuned / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    same_weights(tuned, tmp_path / "again")
    first, second = (read_run(run, "ledger.json") for run in (tuned, tmp_path / "again"))
    assert first["tokens"] == second["tokens"]
    assert first["flops"] == second["flops"]
    assert (
        VisionLanguageModel.from_pretrained(tuned).fingerprint
        == VisionLanguageModel.from_pretrained(tmp_path / "again").fingerprint
    )


def test_the_seed_changes_the_run(fit: Fit, tuned: Path, tmp_path: Path, weights_of: Weights) -> None:
    config = str(tuned / "config.yaml")
    assert main(["fit", "--config", config, "--out", str(tmp_path / "other"), "--seed_everything", "1"]) == 0
    ours, theirs = weights_of(tuned), weights_of(tmp_path / "other")
    assert any(not torch.equal(ours[n], theirs[n]) for n in ours if "lora_B" in n)  # another dropout


def test_gradient_checkpointing_gives_the_same_run(
    fit: Fit, text_rows: Path, tmp_path: Path, weights_of: Weights
) -> None:
    flags = [
        f"--data.train.text=[{text_rows}]",
        "--data.train.total=12",
        "--data.pack_rows=3",
        "--model.lora.dropout=0.1",
    ]
    for name, value in (("kept", "false"), ("computed", "true")):
        assert fit(tmp_path / name, *flags, "--model.lora.r=4", f"--model.gradient_checkpointing={value}") == 0
    ours, theirs = weights_of(tmp_path / "kept"), weights_of(tmp_path / "computed")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    flops = [json.loads((tmp_path / n / "ledger.json").read_text())["flops"]["language"] for n in ("kept", "computed")]
    assert 1.2 < flops[1] / flops[0] < 1.6


def test_adapters_are_trained_on_quantised_weights(
    fit: Fit, llama_of_64s: Path, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    flags = [f"--model.language={llama_of_64s}", f"--data.train.text=[{text_rows}]", "--data.pack_rows=4"]
    flags += ["--model.quantise=nf4", "--trainer.max_epochs=6"]
    assert fit(tmp_path / "run", *flags, "--model.lora.r=4", "--model.lora.dropout=0") == 0
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < losses[0] - 1
    model = VisionLanguageModel.from_pretrained(tmp_path / "run")
    assert model.spec.quantise == "nf4"
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    rows = (
        f"{ledger['steps']} steps on {ledger['samples']:,} rows ({ledger['tokens']['supervised']:,} tokens learnt from)"
    )
    assert (
        f"{rows}, drawn from {len(text_rows.read_text().splitlines())} text and 0 visual ones"
        in capsys.readouterr().out
    )
    assert model.answer(["What comes after 3?"], max_tokens=4)
    assert fit(tmp_path / "full", *flags) == 2
    assert "--model.quantise nf4: quantised weights cannot be trained; give --model.lora" in capsys.readouterr().err


def test_the_checkpoint_holds_what_is_trained_and_is_plain_tensors(tuned: Path) -> None:
    checkpoint = torch.load(tuned / "checkpoints" / "last.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert {n for n in names if "lora_" not in n and ".projector." not in n} == {
        "model.tower.feature_mean",
        "model.tower.feature_std",
    }
    assert sum("lora_" in n for n in names) == 28


def test_a_finished_run_is_not_written_over(
    fit: Fit, tuned: Path, text_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tuned / "ledger.json").read_bytes()
    assert fit(tuned, f"--data.train.text=[{text_rows}]") == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert (tuned / "ledger.json").read_bytes() == before


def test_a_trial_run_is_not_a_finished_one(fit: Fit, text_rows: Path, tmp_path: Path) -> None:
    flags = [f"--data.train.text=[{text_rows}]", "--model.lora.r=2"]
    assert fit(tmp_path / "run", *flags, "--trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "run" / "model").exists()


def test_validation_measures_held_out_rows_and_wrong_photos(
    fit: Fit, aligned: Path, visual_rows: Path, vision_flags: list[str], tmp_path: Path
) -> None:
    flags = [
        "--model.stage=align",
        f"--data.train.visual=[{visual_rows}]",
        f"--data.validation=[{visual_rows}]",
    ]
    assert fit(tmp_path / "run", *flags, *vision_flags, "--data.pack_rows=3") == 0
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    last = [r for r in rows if r["val_loss"]][-1]
    assert float(last["val_loss_wrong_photo"]) != pytest.approx(float(last["val_loss"]), abs=1e-6)


def test_standardisation_is_measured_once_and_saved(
    fit: Fit, visual_rows: Path, vision_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model.stage=align", f"--data.train.visual=[{visual_rows}]", "--model.vision.standardise=true"]
    assert fit(tmp_path / "run", *flags, *vision_flags) == 0
    tower = VisionLanguageModel.from_pretrained(tmp_path / "run").tower
    assert tower is not None
    assert float(tower.feature_mean.abs().max()) > 0.01  # type: ignore[operator]
    assert float((tower.feature_std - 1).abs().max()) > 0.01  # type: ignore[operator]


def test_validating_needs_only_what_it_measures_on(
    base_flags: list[str], aligned: Path, visual_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", *base_flags[3:], f"--model.base={aligned}"]
    assert main([*command, f"--data.validation=[{visual_rows}]"]) == 0
    assert "val_loss" in capsys.readouterr().out
    assert main([*command, f"--data.train.visual=[{visual_rows}]"]) == 2
    assert "give --data.validation" in capsys.readouterr().err.splitlines()[-1]


def test_adapters_on_adapters_are_refused(
    fit: Fit, tuned: Path, text_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model.base={tuned}", f"--data.train.text=[{text_rows}]", "--trainer.accelerator=cpu"]
    assert fit(tmp_path / "run", *flags, "--model.lora.r=2", base=False) == 2
    assert "has adapters already" in capsys.readouterr().err


def test_training_goes_on_from_adapters(
    fit: Fit, tuned: Path, text_rows: Path, tmp_path: Path, weights_of: Weights
) -> None:
    flags = [
        f"--model.base={tuned}",
        f"--data.train.text=[{text_rows}]",
        "--trainer.accelerator=cpu",
        "--model.learning_rate=1e-9",
    ]
    assert fit(tmp_path / "run", *flags, base=False) == 0
    before, after = weights_of(tuned), weights_of(tmp_path / "run")
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-4)
    spec = json.loads((tmp_path / "run" / "model" / "mmtune.json").read_text())["spec"]
    assert LoraOptions(**spec["lora"]).r == 4


def test_the_model_needs_no_run_directory_around_it(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "model", tmp_path / "elsewhere")
    moved = VisionLanguageModel.from_pretrained(tmp_path / "elsewhere")
    assert moved.fingerprint == VisionLanguageModel.from_pretrained(tuned).fingerprint
