"""`mmtune.plan` plans what `mmtune plan` does, from the arguments of `mmtune.fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

import mmtune
from mmtune.cli.plan import make_plan
from mmtune.common.errors import UserError
from mmtune.models.cost.memory import DDP, FSDP, ZERO_2, ZERO_3
from mmtune.training import plan as planning
from mmtune.training.estimates import schedule_of
from mmtune.training.plan_tables import print_plan

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "config_goldens.json").read_text())
RECIPES = [name for name, settings in GOLDENS.items() if "model" in settings and "/" not in name]
NUMBERS = {"rows": 640, "text_tokens": 300, "answer_tokens": 80}
FLAGS = [f"--{name}={value}" for name, value in NUMBERS.items()]


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_planned_as_by_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimates themselves follow from what is captured here."""
    found: list[Any] = []

    def captured(module: Any, workloads: Any, schedule: Any, **options: Any) -> list[Any]:
        settings = (module.optimizer_name, module.dtype_of_frozen, module.stored_features_gib, module.objective.name)
        found.append((module.spec, module.stage, settings, workloads, schedule, options))
        return []

    monkeypatch.setattr(planning, "estimates", captured)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trainer = GOLDENS[name].get("trainer", {})
    classes = {key: value for key, value in trainer.items() if isinstance(value, dict) and "class_path" in value}
    arguments = mmtune.recipe(name, **classes)
    train = arguments["data"].get("train", {})
    share = {} if "text_fraction" in train else {"text_fraction": 0.5}
    arguments["data"] = {**arguments["data"], "train": {**train, **share}}
    python = mmtune.plan(**arguments, **NUMBERS)
    flags = [f"--data.train.{key}={value}" for key, value in share.items()]
    command = make_plan(["--config", name, *FLAGS, *flags])[1]
    assert found[0] == found[1]
    assert (python.method, python.dtype, python.notes) == (command.method, command.dtype, command.notes)


def test_rows_are_planned_as_they_are_trained_on(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Say {n}", "completion": str(n)} for n in range(20)]
    model = {"language": str(llama), "template": "chatml", "lora": {"r": 4}}
    plan = mmtune.plan(model, rows, max_epochs=2, compared=False)
    (estimate,), (work,) = plan.estimates, plan.workloads
    assert (plan.method, estimate.method, work.rows, work.passes) == ("LoRA", "LoRA", 20, 2)
    assert plan.to_dict()["visual_over_language"] == {}
    print_plan(plan)
    assert "100 %" not in capsys.readouterr().out
    run = mmtune.fit(model, rows, tmp_path / "run", max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert plan.to_dict()["estimates"][0]["flops"] == run.ledger["flops"]
    assert {kind: run.ledger["tokens"][kind] for kind in work.tokens()} == work.tokens()


@pytest.mark.parametrize(
    ("strategy", "sharding"),
    [
        ("ddp", DDP),
        (DDPStrategy(), DDP),
        ("fsdp", FSDP),
        (FSDPStrategy(), FSDP),
        (ModelParallelStrategy(), FSDP),
        ("deepspeed_stage_2", ZERO_2),
        ("deepspeed_stage_3_offload", ZERO_3),
        ({"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy", "init_args": {"stage": 3}}, ZERO_3),
    ],
)
def test_a_strategy_is_known_by_name_object_or_config(strategy: Any, sharding: Any) -> None:
    options = {"devices": 8, "num_nodes": 2, "max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": 1}
    schedule = schedule_of({**options, "strategy": strategy, "precision": None})
    assert (schedule.sharding, schedule.devices) == (sharding, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give --rows, --text_tokens and --answer_tokens"),
        ({"rows": 10}, "--text_tokens: missing"),
        ({"max_stepz": 3}, "trainer: there is no option 'max_stepz'; did you mean 'max_steps'"),
    ],
)
def test_what_is_missing_is_named(llama: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mmtune.plan({"language": str(llama), "template": "chatml"}, **options)
