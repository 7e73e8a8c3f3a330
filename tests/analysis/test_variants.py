"""What a RUN is: which evaluation, whose ledger, which variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluations import write_evaluation, write_run

from mmtune.analysis.variants import Variant, read_variants
from mmtune.common.errors import UserError


def run_with(folder: Path, name: str = "eval", scores: tuple[float, ...] = (1, 0), **options: Any) -> Path:
    run = write_run(folder, **options)
    write_evaluation(run / name, {"read": scores, "see": scores}, model=str(run))
    return run


def refusal(*paths: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        read_variants(paths)
    return str(caught.value)


def only(variants: list[Variant]) -> Variant:
    (variant,) = variants
    return variant


def test_a_run_with_its_evaluation_inside_and_the_evaluation_in_a_run(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", seed_everything=3, model__stage="tune")
    for path, name in ((run, "run"), (run / "eval", "eval")):
        variant = only(read_variants([path]))
        assert variant.name == name
        assert (variant.runs[0].run, variant.runs[0].seed) == (run, 3)
        assert variant.runs[0].ledger == json.loads((run / "ledger.json").read_text())
        assert variant.runs[0].config["model.stage"] == "tune"
        assert variant.runs[0].losses == [(0, 3.0), (1, 2.9), (2, 2.8)]


def test_what_was_scored_before_training_is_not_the_runs_own(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "after")
    write_evaluation(run / "before", {"read": [0]}, model="org/base")
    variants = read_variants([run / "before", run / "after"])
    assert [variant.runs[0].run for variant in variants] == [None, run]
    assert "holds several evaluations" in refusal(run)


def test_a_moved_run_and_an_evaluation_elsewhere_find_the_ledger(tmp_path: Path) -> None:
    run = run_with(tmp_path / "old")
    write_evaluation(tmp_path / "scores", {"read": [1]}, model=f"{run}/model")
    write_evaluation(tmp_path / "direct", {"read": [1]}, model=str(run))
    assert only(read_variants([tmp_path / "direct"])).runs[0].run == run
    run.rename(tmp_path / "new")
    assert only(read_variants([tmp_path / "new"])).runs[0].run == tmp_path / "new"
    assert only(read_variants([tmp_path / "scores"])).runs[0].run is None


def test_labels_and_seeds(tmp_path: Path) -> None:
    one, two = (run_with(tmp_path / f"s{seed}" / "text", seed_everything=seed) for seed in (0, 1))
    variants = read_variants([f"text only={one}", f"text only={two}"])
    assert [(variant.name, [run.seed for run in variant.runs]) for variant in variants] == [("text only", [0, 1])]
    assert [variant.name for variant in read_variants([one, two])] == [str(one), str(two)]
    odd = run_with(tmp_path / "a=b")
    assert only(read_variants([odd])).name == "a=b"


def test_what_reproduce_left(tmp_path: Path) -> None:
    write_run(tmp_path / "align", model__stage="align")
    write_evaluation(tmp_path / "base/eval", {"read": [0], "see": [0]}, model="align")
    for seed in (0, 1):
        run_with(tmp_path / f"seed-{seed}/text", seed_everything=7)
    write_run(tmp_path / "seed-2/text")
    variants = [{"name": "base", "runs": [{"seed": None, "run": "align", "evaluation": "base/eval"}]}]
    runs = [{"seed": s, "run": f"seed-{s}/text", "evaluation": f"seed-{s}/text/eval"} for s in range(4)]
    variants.append({"name": "text", "runs": runs})
    (tmp_path / "reproduce.json").write_text(json.dumps({"variants": variants, "seen": {"read": "12 rows"}}))
    base, text = read_variants([tmp_path])
    assert base.runs[0].run == tmp_path / "align"
    assert base.runs[0].aligned_only
    assert [run.seed for run in text.runs] == [0, 1]
    assert text.unfinished == ("seed-2/text", "seed-3/text")
    assert text.seen == {"read": "12 rows"}
    assert "without a label" in refusal(f"x={tmp_path}")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "key 'variants' is missing; it was not written by mmtune reproduce"),
        ([], "must be a mapping"),
        ({"variants": [{"name": "x"}]}, "variants: entry 1: key 'runs' is missing"),
        (
            {"variants": [{"name": "x", "runs": [{"seed": "a", "run": None, "evaluation": "e"}]}]},
            "runs: entry 1: seed: must",
        ),
        ({"variants": 3}, "variants: must be a list, not 3"),
        ({"variants": []}, "no run of it is finished yet"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, plan: Any, message: str) -> None:
    (tmp_path / "reproduce.json").write_text(json.dumps(plan))
    refused = refusal(tmp_path)
    assert refused.startswith(str(tmp_path / "reproduce.json"))
    assert message in refused


def test_mistakes_are_named(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    assert "given twice" in refusal(run, f"again={run / 'eval'}")
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "LABEL=RUN" in refusal(f"={run}")
    assert "give one run" in refusal()
    (run / "config.yaml").write_text("a: [")
    assert "not valid YAML" in refusal(run)
    (run / "config.yaml").write_text("- a")
    assert "no settings" in refusal(run)
    (run / "config.yaml").unlink()
    (run / "ledger.json").write_text('{"train_s": 1, "samples": "many"}')
    assert "ledger.json: samples" in refusal(run)
