"""What is compared, what is refused, and that the figures are those of the samples."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import HOSTILE, sample, write_evaluation
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.analysis.compare import compare
from mmtune.analysis.comparison import Comparison, write_json_file
from mmtune.common.errors import UserError
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.results import Results, Sample, TaskResult
from mmtune.evaluation.run.store import Store


def pair_of(root: Path, old: list[float], new: list[float]) -> tuple[Path, Path]:
    return write_evaluation(root / "a", {"t": old}), write_evaluation(root / "b", {"t": new})


def refusal(*folders: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare(folders, **options)
    return str(caught.value)


def test_scores_differences_and_flips(tmp_path: Path) -> None:
    a, b = pair_of(tmp_path, [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1])
    (task,) = compare([a, b]).against[0].tasks
    assert (task.rows, task.gained, task.lost) == (6, 2, 1)
    assert (task.estimate.baseline, task.estimate.other) == pytest.approx((3 / 6, 4 / 6))
    assert task.estimate.difference == pytest.approx(1 / 6)
    low, high = task.estimate.interval
    assert low < 1 / 6 < high
    assert not task.estimate.clear
    assert task.p_value == pytest.approx(1)
    assert [(flip.before.id, flip.after.score) for flip in task.flips] == [(0, 1), (1, 1), (3, 0)]


def test_fractional_scores_flip_by_rising_or_falling(tmp_path: Path) -> None:
    a, b = pair_of(tmp_path, [0.3, 0.6, 1, 0.9], [0.6, 0.3, 1, 1])
    (task,) = compare([a, b]).against[0].tasks
    assert (task.gained, task.lost) == (2, 1)
    assert task.reported is None


def test_averages_are_unweighted_and_their_intervals_those_of_independent_tasks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {"read": 100, "reason": 400, "see": 200}
    a, b = (
        write_evaluation(tmp_path / name, {task: rng.integers(0, 2, n).tolist() for task, n in rows.items()})
        for name in "ab"
    )
    one = compare([a, b]).against[0]
    differences = {task.name: task.estimate.difference for task in one.tasks}
    averages = {average.name: average for average in one.averages}
    assert {name: average.tasks for name, average in averages.items()} == {
        "language": ["read", "reason"],
        "vision": ["see"],
        "overall": ["read", "reason", "see"],
    }
    for average in averages.values():
        expected = np.mean([differences[name] for name in average.tasks])
        assert average.estimate.difference == pytest.approx(expected)
        # the variance of a mean of independent means
        variances = [np.var(changes_of(a, b, name)) / rows[name] for name in average.tasks]
        error = np.sqrt(np.sum(variances)) / len(average.tasks)
        low, high = average.estimate.interval
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)


def changes_of(a: Path, b: Path, task: str) -> list[float]:
    lines = [(folder / "samples" / f"{task}.jsonl").read_text().splitlines() for folder in (a, b)]
    return [json.loads(new)["score"] - json.loads(old)["score"] for old, new in zip(*lines, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 4), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_exchanging_the_evaluations_negates_everything(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]], seed: int
) -> None:
    root = tmp_path_factory.mktemp("pair")
    first, second, third, fourth = map(list, zip(*rows, strict=True))
    a = write_evaluation(root / "a", {"read": first, "see": second})
    b = write_evaluation(root / "b", {"read": third, "see": fourth})
    there, back = (compare(folders, seed=seed).against[0] for folders in ((a, b), (b, a)))
    for one, other in zip([*there.tasks, *there.averages], [*back.tasks, *back.averages], strict=True):
        assert one.estimate.difference == pytest.approx(-other.estimate.difference)
        low, high = one.estimate.interval
        assert other.estimate.interval == pytest.approx((-high, -low), abs=1e-12)
    for one_task, other_task in zip(there.tasks, back.tasks, strict=True):
        assert (one_task.gained, one_task.lost) == (other_task.lost, other_task.gained)
        assert one_task.p_value == other_task.p_value


def test_an_evaluation_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"t": [0, 1, 1]})
    (task,) = compare([a, a]).against[0].tasks
    assert (task.estimate.difference, task.estimate.interval, task.flips) == (0, (0, 0), [])


def test_samples_are_matched_by_id_and_not_by_line(tmp_path: Path) -> None:
    rows = [sample(n, n % 2) for n in range(6)]
    a, b = write_evaluation(tmp_path / "a", {"t": rows}), write_evaluation(tmp_path / "b", {"t": rows[::-1]})
    assert not compare([a, b]).against[0].tasks[0].flips


def test_a_task_keeps_its_interval_whatever_is_compared_beside_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        write_evaluation(tmp_path / name, {task: rng.integers(0, 2, 50).tolist() for task in ("t", "u")})
        for name in "ab"
    )
    both, alone = compare([a, b]), compare([a, b], tasks=["u"])
    assert both.against[0].tasks[1].estimate == alone.against[0].tasks[0].estimate
    assert both.against[0].tasks[0].estimate != compare([a, b], seed=1).against[0].tasks[0].estimate


def test_several_against_one_use_the_tasks_that_all_have(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"t": [0, 1], "u": [1, 1]})
    b = write_evaluation(tmp_path / "b", {"v": [0, 0], "u": [0, 1], "t": [1, 1]})
    c = write_evaluation(tmp_path / "c", {"t": [0, 0]})
    comparison = compare([a, b, c])
    assert comparison.tasks == ["t"]
    assert comparison.left_out == {"u": ["A", "B"], "v": ["B"]}
    assert [(one.other.label, one.tasks[0].estimate.difference) for one in comparison.against] == [
        ("B", 0.5),
        ("C", -0.5),
    ]
    told = " ".join(comparison.method())
    assert "only over the one task that A, B and C have" in told
    assert "Left out: u, which only A and B have. Left out: v, which only B has." in told


def test_fifty_thousand_samples_are_quick(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = pair_of(tmp_path, *(rng.integers(0, 2, 50_000).tolist() for _ in range(2)))
    begun = time.perf_counter()
    comparison = compare([a, b])
    assert time.perf_counter() - begun < 20  # about 2 s on a free core; mostly reading
    assert comparison.against[0].tasks[0].rows == 50_000


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"dataset": {"fingerprint": "other"}}, "dataset.fingerprint", "different rows"),
        ({"protocol": "mlan"}, "protocol", "worded by different rules"),
        ({"answering": "likelihood"}, "answering", "different ways"),
        ({"version": 2}, "version", "task file was changed"),
        ({"metric": "f1"}, "metric", "different measures"),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path: Path, change: dict[str, Any], field: str, reason: str) -> None:
    a = write_evaluation(tmp_path / "a", {"t": [0, 1], "u": [0, 1]})
    b = write_evaluation(tmp_path / "b", {"t": [0, 1], "u": [0, 1]}, changes={"u": change})
    for folders in ((a, b), (b, a), (a, a, b)):
        message = refusal(*folders)
        for part in (str(a / "results.json"), str(b / "results.json"), field, "'u'", reason, "--tasks"):
            assert part in message
    assert compare([a, b], tasks=["t"]).tasks == ["t"]


def test_results_without_a_way_of_answering_were_generated(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"t": [0, 1]})
    b = write_evaluation(tmp_path / "b", {"t": [0, 1]}, changes={"t": {"answering": "generate"}})
    assert compare([a, b]).tasks == ["t"]


def test_nothing_in_common(tmp_path: Path) -> None:
    a, b = write_evaluation(tmp_path / "a", {"t": [1]}), write_evaluation(tmp_path / "b", {"u": [1]})
    message = refusal(a, b)
    assert "no task in common" in message
    assert str(a) in message
    assert str(b) in message


def test_wrong_arguments(tmp_path: Path) -> None:
    a, b = pair_of(tmp_path, [1], [0])
    assert "two or more" in refusal(a)
    assert "did you mean 'boolq'" in refusal(
        *(write_evaluation(tmp_path / name, {"boolq": [1]}) for name in "cd"), tasks=["bolq"]
    )
    assert "--tasks" in refusal(a, b, tasks=[])
    assert "no such folder" in refusal(a, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no results.json" in refusal(a, tmp_path / "empty")


def test_a_run_stands_for_the_one_evaluation_below_it(tmp_path: Path) -> None:
    pair_of(tmp_path / "run", [1], [0])
    inside = write_evaluation(tmp_path / "other" / "scores", {"t": [1]})
    assert compare([tmp_path / "other", inside / "results.json"]).baseline.folder == inside
    message = refusal(tmp_path / "run", inside)
    assert "several evaluations" in message
    assert str(tmp_path / "run" / "b") in message


def damage(kind: str, b: Path) -> Path:
    """Damage an evaluation, and say which file must be named."""
    file, results = b / "samples" / "t.jsonl", b / "results.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    match kind:
        case "missing":
            file.unlink()
        case "cut off":
            file.write_text(file.read_text()[:-20])
        case "binary":
            file.write_bytes(b"\xff\xfe\x00")
        case "a list":
            file.write_text("[]\n")
        case "no score":
            del rows[1]["score"]
        case "a score that is no number":
            rows[1]["score"] = float("nan")
        case "the same sample twice":
            rows[1] = rows[0]
        case "a sample too few":
            rows.pop()
        case "other scores":
            rows[1]["score"] = 0.5
        case "other ids":
            rows[1]["id"] = 77
        case "another target":
            rows[1]["target"] = "no"
        case "another prompt":
            rows[1]["prompt"] = "What?"
        case "results cut off":
            results.write_text(results.read_text()[:-20])
            return results
        case "results without tasks":
            results.write_text("{}")
            return results
        case "a task without a protocol":
            values = json.loads(results.read_text())
            del values["tasks"]["t"]["protocol"]
            results.write_text(json.dumps(values))
            return results
    if kind not in ("missing", "cut off", "binary", "a list"):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "cut off", "binary", "a list", "no score", "a score that is no number", "the same sample twice"),
        *("a sample too few", "other scores", "other ids", "another target", "another prompt"),
        *("results cut off", "results without tasks", "a task without a protocol"),
    ],
)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    a, b = pair_of(tmp_path, [0, 1, 1], [1, 1, 0])
    file = damage(kind, b)
    for folders in ((a, b), (b, a)):
        assert str(file) in refusal(*folders)


def test_a_score_that_is_no_mean_of_samples_is_told_apart(tmp_path: Path) -> None:
    changes = {"t": {"metric": "f1", "score": 0.25}}
    a, b = (write_evaluation(tmp_path / n, {"t": [0, 1, 1, 1]}, changes=changes) for n in "ab")
    comparison = compare([a, b])
    assert comparison.against[0].tasks[0].reported == ("f1", 0.25, 0.25)
    assert any("scored by f1" in line and "mean score" in line for line in comparison.method())


def test_cost_stands_beside_the_scores_where_it_is_known(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a = write_evaluation(tmp_path / "a", {"t": [1]}, model=str(run))
    b = write_evaluation(run / "scores", {"t": [0]}, model=str(run))
    ledger = {"train_s": 7, "samples": 1, "tower_passes": 0, "tokens": {"text": 1, "image": 0}}
    (run / "ledger.json").write_text(json.dumps(ledger | {"flops": {"language": 2e12, "tower": 1e12}}))
    first, second = compare([a, b]).sides
    assert first.training() == second.training() == {"train_s": 7.0, "flops": 3e12}
    moved = write_evaluation(run / "more", {"t": [0]}, model="elsewhere/run")  # above the evaluation, moved since
    assert compare([a, moved]).sides[1].training() == first.training()
    assert first.seconds(["t"]) == 2
    (run / "ledger.json").write_text('{"train_s": 7}')
    assert first.training() is None
    c = write_evaluation(tmp_path / "c", {"t": [1]}, changes={"t": {"seconds": None}}, model="owner/name")
    assert compare([a, c]).sides[1].seconds(["t"]) is None
    assert compare([a, c]).sides[1].training() is None


def test_what_the_evaluator_writes_can_be_compared(tmp_path: Path) -> None:
    names = [tmp_path / name for name in "ab"]
    for folder, score in zip(names, (0.0, 1.0), strict=True):
        said = [Sample(n, f"Question {n}?", HOSTILE, None, "yes", score, None) for n in range(3)]
        given = {field.name: {} for field in dataclasses.fields(TaskResult)}  # what a comparison does not look at
        shares = {"score": score, "stderr": 0.0, "unparsed": 1.0, "seconds": 1.5}
        texts = {"modality": "vision", "metric": "accuracy", "protocol": "blind", "answering": "generate"}
        cost = dict.fromkeys(COSTS, 1.0)
        task = TaskResult(**given | shares | texts | {"n": 3, "version": 1, "cost": cost})
        Store(folder).write(Results("s", "m", "now", {}, {"see": task}, {"see": said}), "see")
    (task_compared,) = compare(names).against[0].tasks
    assert (task_compared.rows, task_compared.gained, task_compared.modality) == (3, 3, "vision")
    assert task_compared.flips[0].before.response == HOSTILE


def written(comparison: Comparison, folder: Path) -> dict[str, Any]:
    write_json_file(comparison, folder / "comparison.json")
    values: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return values


def test_json_has_every_figure_and_every_flip_as_it_was(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"t": [sample(0, 0, response=HOSTILE, prediction=None), sample(1, 1)]})
    b = write_evaluation(tmp_path / "b", {"t": [sample(0, 1, response="yes"), sample(1, 1)], "u": [1]})
    values = written(compare([a, b], seed=5), tmp_path)
    assert values["method"]["seed"] == 5
    assert values["tasks_left_out"] == {"u": ["B"]}
    assert [side["folder"] for side in values["evaluations"]] == [str(a), str(b)]
    (one,) = values["comparisons"]
    task = one["tasks"]["t"]
    assert (task["baseline"], task["other"], task["difference"]) == (0.5, 1, 0.5)
    assert (task["gained"], task["lost"], task["p_value"]) == (1, 0, 1)
    assert len(task["interval"]) == 2
    assert one["averages"]["overall"]["tasks"] == ["t"]
    (flip,) = task["flips"]
    assert (flip["id"], flip["prompt"], flip["target"]) == (0, "Question 0?", "yes")
    assert flip["baseline"] == {"prediction": None, "response": HOSTILE, "score": 0}
    assert flip["other"] == {"prediction": "yes", "response": "yes", "score": 1}
