"""An objective of a user's own: numbers of rows per document, weights of its own, and everything else as it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import mmtune
from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import IGNORED, Example
from mmtune.data.loader import EpochOrder, PackLoader
from mmtune.data.mixture import Mixture
from mmtune.data.sources.readers import read_conversations
from mmtune.models.head import Head
from mmtune.training.module import InstructionTuning
from mmtune.training.objectives.sft import SupervisedObjective
from mmtune.training.objectives.token_loss import token_log_probs

TRAINER: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "checkpoint_every": 0}
ROWS = [
    {"prompt": f"Say {n}", "completion": "x" * n, "advantage": advantage, "worth": weight}
    for n, advantage, weight in ((1, -0.5, 0.5), (40, 2.0, 1.0), (3, 0.25, 2.5), (12, 1.5, 0.125))
]


@dataclass(frozen=True)
class PolicyGradient(SupervisedObjective):
    """Mean over documents of -advantage times the mean log-probability of the answer's tokens."""

    columns: tuple[str, ...] = ("advantage",)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "policy gradient"

    @property
    def value_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.columns

    def weight(self, example: Example) -> float:
        return example.values.get("worth", 1)

    def loss(self, hidden: torch.Tensor, batch: PackedBatch, head: Head) -> torch.Tensor:
        documents = len(batch.where)
        learnt = (batch.targets != IGNORED).float()
        log_probs = token_log_probs(hidden, batch.targets, head)
        sums = torch.zeros(2, documents).index_add(1, batch.document_ids, torch.stack([log_probs, learnt]))
        values = batch.document_values
        weights = values.get("worth", torch.ones(documents))
        each = -values["advantage"] * sums[0] / sums[1].clamp(min=1)
        return (weights * each).sum() / weights.sum()


@pytest.fixture
def model(llama: Path) -> dict[str, Any]:
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    return {"language": str(llama), "template": "chatml", "learning_rate": 0.01, "lora": lora}


def data(rows: Any = ROWS, **options: Any) -> dict[str, Any]:
    return {"train": {"text": rows}, "max_length": 256, **options}


def losses(run: mmtune.training.fit.Run) -> list[float]:
    with (run.path / "metrics.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


def plain_loss(llama: Path, module: InstructionTuning, weights: list[float]) -> float:
    """The same by transformers' own model, row by row."""
    language = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="eager").eval()
    datamodule = InstructionData(Mixture(**as_files(ROWS)), max_length=256, inputs=module.inputs)
    datamodule.setup("fit")
    total = 0.0
    for example in datamodule._train.examples:  # type: ignore[union-attr]
        row = next(row for row in ROWS if row["advantage"] == example.values["advantage"])
        ids = torch.tensor(example.input_ids[None], dtype=torch.long)
        learnt = torch.tensor(example.supervised[1:])
        with torch.no_grad():
            logits = language(ids).logits[0, :-1]
        mean = -cross_entropy(logits[learnt], ids[0, 1:][learnt])
        total -= weights[ROWS.index(row)] * float(row["advantage"]) * float(mean)
    return total / sum(weights)


def as_files(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from mmtune.data.sources.in_memory import rows_file

    return {"text": [str(rows_file(rows))]}


@pytest.mark.parametrize("columns", [("advantage",), ("advantage", "worth")])
def test_it_is_plain_codes_loss_however_the_packs_are_spread(
    model: dict[str, Any], llama: Path, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    objective = PolicyGradient(columns)
    found = {}
    for name, options, accumulated in (
        ("one", {"pack_tokens": 1024}, 1),
        ("four", {"pack_rows": 1}, 4),
        ("two", {"pack_rows": 2}, 2),
        ("rest", {"pack_rows": 1}, 3),  # three in the first step, and the fourth alone
    ):
        run = mmtune.fit(
            model,
            data(**options),
            tmp_path / name,
            objective=objective,
            max_epochs=1,
            accumulate_grad_batches=accumulated,
            **TRAINER,
        )
        found[name] = losses(run)
        assert run.ledger["objective"] == "policy gradient"
    module = InstructionTuning(language=str(llama), template="chatml")
    module.objective = objective
    weights = [float(row["worth"]) if "worth" in columns else 1.0 for row in ROWS]
    expected = plain_loss(llama, module, weights)
    for name in ("one", "four", "two"):
        assert found[name] == [pytest.approx(expected, rel=2e-5)], name
    assert len(found["rest"]) == 2


class Interrupt(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("the machine went down")


def test_it_goes_on_exactly_and_only_with_the_same_objective_and_values(
    model: dict[str, Any],
    tmp_path: Path,
    same_weights: Callable[[Path, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {**TRAINER, "checkpoint_every": 2, "max_steps": 6, "max_epochs": 3}
    packs = {"pack_rows": 2}
    objective = PolicyGradient()
    whole = mmtune.fit(model, data(**packs), tmp_path / "whole", objective=objective, **options)
    with pytest.raises(RuntimeError, match="went down"):
        mmtune.fit(model, data(**packs), tmp_path / "run", objective=objective, callbacks=[Interrupt()], **options)
    with pytest.raises(UserError, match="began with objective policy gradient, not sft"):
        mmtune.fit(model, data(**packs), tmp_path / "run", **options)
    other = [{**row, "advantage": float(row["advantage"]) + 1} for row in ROWS]
    with pytest.raises(UserError, match="trained on other rows"):
        mmtune.fit(model, data(other, **packs), tmp_path / "run", objective=objective, **options)
    run = mmtune.fit(model, data(**packs), tmp_path / "run", objective=objective, **options)
    same_weights(whole.path, run.path)
    # its config says which objective it was, and is not taken for that of a run with another
    config = run.path / "config.yaml"
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "again")]) == 2
    assert "objective" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config\.yaml: objective: was 'policy gradient'; give an object of it"):
        mmtune.recipe(config, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    again = mmtune.fit(**mmtune.recipe(config, out=tmp_path / "again", objective=objective))
    same_weights(whole.path, again.path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_numbers_are_read_in_every_file_format(model: dict[str, Any], tmp_path: Path, kind: str) -> None:
    import pandas

    rows = [{name: value for name, value in row.items() if name != "worth"} for row in ROWS]
    frame, file = pandas.DataFrame(rows), tmp_path / f"rows.{kind}"
    write = {
        "jsonl": lambda: file.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "csv": lambda: frame.to_csv(file, index=False),
        "parquet": lambda: frame.to_parquet(file),
    }
    write[kind]()
    module = InstructionTuning(**{**model, "lora": None})
    module.objective = PolicyGradient()
    datamodule = InstructionData(Mixture([str(file)]), max_length=256, validation_fraction=0.25, inputs=module.inputs)
    datamodule.setup("fit")
    loaders = (datamodule.train_dataloader(), datamodule.val_dataloader())
    batches = [batch for loader in loaders for batch in loader]
    values = torch.cat([batch.document_values["advantage"] for batch in batches])
    assert sorted(values.tolist()) == sorted(row["advantage"] for row in ROWS)
    assert sum(batch.weight for batch in batches) == len(ROWS)
    assert datamodule.record["columns_not_read"] == {}


@pytest.mark.parametrize("bad", [None, "high", True, float("nan"), float("inf"), [1]])
def test_what_is_no_number_is_named_by_row_and_column(model: dict[str, Any], tmp_path: Path, bad: Any) -> None:
    rows = [ROWS[0], {**ROWS[1], "advantage": bad}]
    with pytest.raises(UserError, match=r"row 2: 'advantage' is .*, not a finite number, which the objective reads"):
        mmtune.fit(model, data(rows), tmp_path / "run", objective=PolicyGradient(("advantage", "worth")), **TRAINER)


@pytest.mark.parametrize("worth", [0, -1, 1e-400])
def test_a_weight_that_counts_for_nothing_is_named(model: dict[str, Any], tmp_path: Path, worth: float) -> None:
    rows = [ROWS[0], {**ROWS[1], "worth": worth}]
    with pytest.raises(UserError, match=r"row 2: the objective gives it the weight -?[01]"):
        mmtune.fit(model, data(rows), tmp_path / "run", objective=PolicyGradient(("advantage", "worth")), **TRAINER)


def test_validation_weighs_as_training_does(model: dict[str, Any], tmp_path: Path) -> None:
    """All rows held out are all rows trained on, so the first loss of both is the same."""
    objective = PolicyGradient(("advantage", "worth"))
    options = {"validation": ROWS, "pack_rows": 1}
    flags: dict[str, Any] = {**TRAINER, "accumulate_grad_batches": 4, "num_sanity_val_steps": 0}
    run = mmtune.fit(
        {**model, "learning_rate": 1e-12}, data(**options), tmp_path / "run", objective=objective, max_steps=1, **flags
    )
    with (run.path / "metrics.csv").open() as stream:
        logged = {name: value for row in csv.DictReader(stream) for name, value in row.items() if value}
    assert float(logged["val_loss"]) == pytest.approx(float(logged["train_loss"]), rel=1e-5)


def test_token_log_probs_are_those_of_plain_code() -> None:
    torch.manual_seed(0)
    hidden, layer = torch.randn(30, 8, requires_grad=True), nn.Linear(8, 11)
    targets = torch.randint(0, 11, (30,))
    targets[::3] = IGNORED
    plain = -cross_entropy(layer(hidden), targets, reduction="none")
    for chunk in (1, 7, 1024):
        ours = token_log_probs(hidden, targets, layer, chunk=chunk)
        torch.testing.assert_close(ours, plain)
        weights = torch.linspace(-1, 1, 30)
        gradients = [
            torch.autograd.grad((weights * found).sum(), hidden, retain_graph=True)[0] for found in (ours, plain)
        ]
        torch.testing.assert_close(*gradients)
    for chunk, calls in ((1024, 1), (10, 4)):  # as `computes_logits_twice` says: once in one chunk, else twice
        seen: list[int] = []
        hook = layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        token_log_probs(hidden, targets, layer, chunk=chunk).sum().backward()
        hook.remove()
        assert len(seen) == calls
    assert token_log_probs(hidden, torch.full((30,), IGNORED), layer).tolist() == [0.0] * 30


def test_a_column_that_no_row_may_have_is_read_where_the_objective_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "weight": 0.25, "label": "-1e2"}\n')
    [conversation] = read_conversations(str(file), value_columns=("weight", "label"))
    assert conversation.values == {"weight": 0.25, "label": -100.0}
    with pytest.raises(UserError, match="row 1: has 'label'"):
        list(read_conversations(str(file), value_columns=("weight",)))


def test_packs_that_fill_up_a_round_count_for_nothing(model: dict[str, Any], llama: Path) -> None:
    module = InstructionTuning(**{**model, "lora": None})
    module.objective = objective = PolicyGradient(("advantage", "worth"))
    datamodule = InstructionData(Mixture(**as_files(ROWS[:3])), max_length=256, pack_rows=1, inputs=module.inputs)
    datamodule.setup("fit")
    packs = datamodule._train
    assert packs is not None
    loaders = [PackLoader(packs, EpochOrder(3, seed=0, shuffle=True, rank=rank, world=2)) for rank in (0, 1)]
    rounds = list(zip(*loaders, strict=True))
    assert [[batch.repeated for batch in batches] for batches in rounds] == [[False, False], [False, True]]
    for batches in rounds:
        assert {batch.step_weight for batch in batches} == {sum(batch.counted_weight for batch in batches)}
        for batch in batches:
            loss = objective.loss(torch.randn(len(batch.input_ids), 8), batch, nn.Linear(8, 300))
            assert torch.isfinite(loss)
            assert (float(loss.detach()) == 0) == batch.repeated
    assert sum(batch.counted_weight for batches in rounds for batch in batches) == 4.0
