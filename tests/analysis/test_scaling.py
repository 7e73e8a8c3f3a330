"""Averages, their errors, costs, and what is left out."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from evaluations import write_evaluation, write_run
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mmtune.analysis.study import Score, cheaper, study
from mmtune.analysis.tables import study_table
from mmtune.analysis.variants import TrainedRun, Variant, read_variants
from mmtune.common.errors import UserError

Shares = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def variant_of(root: Path, name: str, seeds: list[dict[str, list[float]]], **options: float) -> Variant:
    runs = []
    for seed, tasks in enumerate(seeds):
        run = write_run(root / f"{name}-{seed}", **options)  # type: ignore[arg-type]
        runs.append(TrainedRun.read(write_evaluation(run / "eval", tasks, model=str(run)), run, seed))
    return Variant(name, runs)


@given(Shares, st.floats(1e-6, 0.1))
def test_seeds_averaging_law(scores: list[float], error: float) -> None:
    found = Score.of_seeds(scores, [error] * len(scores))
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.stderr == pytest.approx(math.sqrt(np.var(scores, ddof=1) / len(scores) + error**2))
    assert found.stderr >= error * (1 - 1e-9)


def test_one_seed_is_itself_exactly() -> None:
    assert Score.of_seeds([0.1 + 0.2], [0.0123]) == Score(0.1 + 0.2, 0.0123, 1)


def test_the_error_holds_in_a_simulation_of_seeds_that_answer_the_same_questions() -> None:
    rng = np.random.default_rng(0)
    rows, seeds = 200, 4
    means, errors = [], []
    for _ in range(2000):
        hard = rng.normal(0, 0.25, rows)  # common to the seeds
        chance = np.clip(0.5 + hard + rng.normal(0, 0.05, (seeds, 1)), 0, 1)
        answers = rng.random((seeds, rows)) < chance
        scores = answers.mean(axis=1)
        sampling = answers.std(axis=1) / math.sqrt(rows)
        found = Score.of_seeds(scores.tolist(), sampling.tolist())
        means.append(found.mean)
        errors.append(found.stderr)
    true, said = float(np.std(means)), float(np.mean(errors))
    assert true < said < 1.5 * true  # never too small, and not much too large


def test_averages_over_tasks_and_seeds(tmp_path: Path) -> None:
    seeds = [{"read": [1, 0], "see": [1, 1], "see more": [0, 0]}, {"read": [0, 0], "see": [1, 0], "see more": [1, 0]}]
    (variant,) = study([variant_of(tmp_path, "a", seeds)]).variants
    assert variant.averages["language"].mean == 0.25
    assert variant.averages["vision"].mean == 0.5
    assert variant.averages["overall"].mean == pytest.approx((0.25 + 0.75 + 0.25) / 3)
    # vision is 0.5 with both seeds, so that only the sampling error is left
    assert variant.averages["vision"].stderr == pytest.approx(0.01 * math.sqrt(2) / 2)
    assert variant.averages["language"].stderr == pytest.approx(math.sqrt(0.125 / 2 + 0.01**2))
    assert variant.cost is not None
    assert (variant.cost.flops, variant.cost.seconds, variant.cost.tokens["text"]) == (2e12 + 10, 4.25, 5000)


def test_only_what_all_were_scored_on_alike_and_none_has_seen_is_averaged(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"read": [1], "reason": [1], "see": [0], "extra": [1]})
    b = write_evaluation(
        tmp_path / "b", {"read": [1], "reason": [0], "see": [0]}, changes={"reason": {"protocol": "mlan"}}
    )
    variants = read_variants([a, b])
    variants[1] = Variant("b", variants[1].runs, ("seed-1",), {"see": "3 photos"})
    found = study(variants)
    assert (list(found.tasks), found.averaged, found.averages) == (
        ["read", "reason", "see"],
        ["read"],
        ["language", "overall"],
    )
    told = " ".join(found.warnings)
    for part in ("seed-1 is not finished", "extra: left out", "protocol", "see is not unseen", "3 photos"):
        assert part in told
    assert found.baseline() is None
    with pytest.raises(UserError, match="--baseline c: no such variant"):
        found.baseline("c")


def test_times_cheaper(tmp_path: Path) -> None:
    right, wrong = {"read": [1, 1], "see": [1, 1]}, {"read": [1, 1], "see": [0, 0]}
    text = variant_of(tmp_path, "text", [right], flops=1e12 - 10)
    photos = variant_of(tmp_path, "photos", [wrong], flops=4e12 - 10)
    half = variant_of(tmp_path, "half", [wrong], flops=2e12 - 10, samples=50)
    found = study([text, photos, half])
    baseline = found.baseline()
    assert baseline is not None
    assert baseline.name == "photos"
    assert cheaper(found.variants[0], baseline).at_equal_samples == pytest.approx(4)
    assert cheaper(found.variants[0], baseline).at_same_score["overall"] == pytest.approx(4)
    assert cheaper(found.variants[2], baseline).at_equal_samples == pytest.approx(1)  # half the rows, half the price
    assert cheaper(baseline, found.variants[0]).at_same_score == {"language": 0.25, "vision": None, "overall": None}
    assert "differently many rows, 50 to 100" in found.warnings[-1]


def test_what_others_begin_with_has_no_cost_of_tuning(tmp_path: Path) -> None:
    base = variant_of(tmp_path, "base", [{"read": [0]}], flops=9e12)
    place = str(tmp_path / "base-0" / "model")
    run = write_run(tmp_path / "tuned", model__base=place)
    (tmp_path / "base-0" / "model").mkdir()
    tuned = Variant("tuned", [TrainedRun.read(write_evaluation(run / "eval", {"read": [1]}), run)])
    aligned_run = write_run(tmp_path / "aligned", model__stage="align")
    aligned = Variant("aligned", [TrainedRun.read(write_evaluation(aligned_run / "eval", {"read": [1]}), aligned_run)])
    bare = Variant("bare", [TrainedRun.read(write_evaluation(tmp_path / "bare", {"read": [1]}))])
    found = study([base, tuned, aligned, bare])
    assert [variant.tuned for variant in found.variants] == [False, True, False, False]
    assert cheaper(found.variants[0], found.variants[1]).at_equal_samples is None


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the runs is finished"):
        study([Variant("a", [], ("seed-0",))])
    a, b = (write_evaluation(tmp_path / name, {name: [1]}) for name in ("read", "see"))
    with pytest.raises(UserError, match="no task in common"):
        study(read_variants([a, b]))


def test_the_terminal_table_has_scores_costs_and_plain_names(tmp_path: Path) -> None:
    names = ("[b]text\x1b[31m", "photos")
    variants = [variant_of(tmp_path, f"variant{i}", [{"read": [1, 0]}], flops=(i + 1) * 1e12) for i in (0, 1)]
    variants = [Variant(name, variant.runs) for name, variant in zip(names, variants, strict=True)]
    bare = Variant("bare", [TrainedRun.read(write_evaluation(tmp_path / "bare", {"read": [1, 1]}))])
    stream = io.StringIO()
    Console(file=stream, width=200).print(study_table(study([*variants, bare])))
    text = stream.getvalue()
    assert "\x1b" not in text
    for part in ("[b]text␛[31m", "50.0 ± 1.0", "5,000", "2.0", "2.00 ×", "100.0 ± 1.0", "row of photos"):
        assert part in text
