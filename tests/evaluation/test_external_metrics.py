"""Metrics of `evaluate`: loaded by name, only with permission, and the same numbers as ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_models import Scripted, small_data

from mmtune.common.errors import UserError
from mmtune.common.schema import load_layered
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.score.external import ExternalMetric
from mmtune.evaluation.score.metrics import METRICS, MetricSpec, Outcomes, standard_error
from mmtune.evaluation.tasks.task import Task, load_task, task_from

LOCAL = Path(__file__).parent / "local_metrics"
RATES = ["precision", "recall", "f1", "yes_ratio"]


def pope_with(*metrics: Any) -> Task:
    """POPE with other metrics; their paths start from the folder of the local ones."""
    raw = load_layered(Path(load_task("pope").where))
    return task_from({**raw, "metrics": ["accuracy", *metrics]}, "pope.yaml", LOCAL)


def external(task: Task) -> list[ExternalMetric]:
    return [metric for metric in task.metrics if isinstance(metric, ExternalMetric)]


def random_answers(seed: int, n: int = 400) -> Outcomes:
    """Yes, no and unparsed predictions, and gold answers."""
    random = np.random.default_rng(seed)
    targets = random.choice(["yes", "no"], n)
    predictions = random.choice(np.array(["yes", "no", None], dtype=object), n, p=[0.5, 0.4, 0.1])
    return Outcomes.of([float(p == t) for p, t in zip(predictions, targets, strict=True)], predictions, targets)


def torchmetrics_value(name: str, outcomes: Outcomes) -> float:
    """The same figure by torchmetrics: an unparsed prediction is of a third class, never positive and never right."""
    import torch
    from torchmetrics.functional import classification

    classes = {"no": 0, "yes": 1, None: 2}
    said = torch.tensor([classes[answer] for answer in outcomes.prediction], dtype=torch.long)
    gold = torch.tensor([classes[answer] for answer in outcomes.target], dtype=torch.long)
    if name == "accuracy":
        return float(classification.multiclass_accuracy(said, gold, num_classes=3, average="micro"))
    if name == "yes_ratio":
        return float((said == 1).double().mean())
    binary = {"precision": "binary_precision", "recall": "binary_recall", "f1": "binary_f1_score"}[name]
    return float(getattr(classification, binary)((said == 1).long(), (gold == 1).long()))


@pytest.mark.parametrize("name", ["accuracy", *RATES])
@pytest.mark.parametrize("seed", range(3))
def test_ours_are_those_of_evaluate_and_of_torchmetrics(name: str, seed: int) -> None:
    outcomes = random_answers(seed)
    ours = float(MetricSpec(name, {})(outcomes))
    entry = {"evaluate": {"path": "confusion_rates.py", "result": name, "answers": "number"}}
    theirs = external(pope_with(entry))[0]
    assert theirs.name == f"evaluate:{name}"
    assert ours == pytest.approx(float(theirs(outcomes)), abs=1e-12)
    assert ours == pytest.approx(torchmetrics_value(name, outcomes), abs=1e-6)  # torchmetrics computes in float32


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_where_nothing_is_positive_torchmetrics_gives_0_too(name: str) -> None:
    outcomes = Outcomes.of([1.0, 0.0], ["no", None], ["no", "no"])
    assert float(MetricSpec(name, {})(outcomes)) == torchmetrics_value(name, outcomes) == 0


def test_the_resamples_are_those_of_the_bootstrap_of_torchmetrics() -> None:
    """Its BootStrapper draws other resamples, so the errors agree as far as a thousand draws do."""
    import torch
    from torchmetrics.classification import BinaryF1Score
    from torchmetrics.wrappers import BootStrapper

    outcomes = random_answers(0)
    torch.manual_seed(0)
    wrapped = BootStrapper(BinaryF1Score(), num_bootstraps=300, sampling_strategy="multinomial")
    wrapped.update(
        torch.tensor((outcomes.prediction == "yes").astype(int)), torch.tensor((outcomes.target == "yes").astype(int))
    )
    assert standard_error(MetricSpec("f1", {}), outcomes, seed=0) == pytest.approx(
        float(wrapped.compute()["std"]), rel=0.15
    )


def test_letters_and_arguments() -> None:
    entry = {"path": "confusion_rates.py", "result": "precision", "answers": "number", "arguments": {"positive": 2}}
    metric = external(pope_with({"evaluate": entry}))[0]
    letters = Outcomes.of([1, 0, 0, 1], ["C", "C", None, "A"], ["C", "A", "C", "A"])
    assert float(metric(letters)) == float(METRICS["precision"](letters, positive="C")) == 0.5


def evaluated(tmp_path: Path, task: Task, **options: Any) -> Any:
    from mmtune.evaluation.tasks.suite import Suite

    suite = Suite(name="s", tasks=(task,))
    return evaluate(Scripted(lambda _: "yes"), suite, data_root=small_data(tmp_path), progress=False, **options)


def test_a_task_file_may_name_one_and_the_results_have_it(tmp_path: Path) -> None:
    task = pope_with(
        {"evaluate": {"path": "share_right.py"}}, {"evaluate": {"path": "share_right.py", "result": "half"}}
    )
    results = evaluated(tmp_path, task, trust_metric_code=True)
    found = results.tasks["pope"].metrics
    assert found["evaluate:share_right"] == found["accuracy"] == results.tasks["pope"].score
    assert found["evaluate:half"] == 0.5
    assert {name: group["evaluate:share_right"] for name, group in found["groups"].items()} == {
        name: group["accuracy"] for name, group in found["groups"].items()
    }


def test_no_code_of_a_metric_runs_without_permission(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = tmp_path / "hostile.py"
    code.write_text(f"open({str(trace)!r}, 'w').write('it ran')\n" + (LOCAL / "share_right.py").read_text())
    task = pope_with({"evaluate": {"path": str(code), "result": "share_right"}})
    expected = r"pope.yaml: metrics: .*hostile.py would run this Python file; if you trust it, give --trust-metric-code"
    with pytest.raises(UserError, match=expected):
        evaluated(tmp_path, task)
    assert not trace.exists()
    evaluated(tmp_path, task, trust_metric_code=True)
    assert trace.exists()


def test_the_hub_is_not_asked_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate as library

    asked: list[Any] = []
    monkeypatch.setattr(library, "load", lambda *a, **k: asked.append((a, k)))
    task = pope_with({"evaluate": {"path": "exact_match", "revision": "v1"}})
    with pytest.raises(UserError, match=r"exact_match would run Python code of the Hugging Face hub"):
        evaluated(tmp_path, task)
    assert asked == []


def test_a_folder_here_is_not_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exact_match").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pope.yaml: metrics: exact_match: a folder of that name is here"):
        evaluated(tmp_path, pope_with({"evaluate": {"path": "exact_match"}}), trust_metric_code=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", r"pope.yaml: metrics: metric .*broken.py: cannot be loaded"),
        ("raise RuntimeError('boom\\nmore')", r"pope.yaml: metrics: metric .*broken.py: cannot be loaded: boom$"),
        ("x = (", r"pope.yaml: metrics: metric .*broken.py: cannot be loaded"),
    ],
)
def test_a_metric_that_cannot_be_loaded(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UserError, match=message):
        evaluated(tmp_path, pope_with({"evaluate": {"path": str(tmp_path / "broken.py")}}), trust_metric_code=True)


def test_a_metric_that_fails_or_lacks_the_result() -> None:
    outcomes = random_answers(0)
    for entry, message in (
        ({"path": "share_right.py", "result": "gone"}, r"share_right.py: does not compute 'gone'"),
        ({"path": "share_right.py", "arguments": {"x": 1}}, r"share_right.py: does not compute 'share_right': .*'x'"),
        ({"path": "confusion_rates.py", "result": "f1"}, r"confusion_rates.py: does not compute 'f1'"),
    ):
        with pytest.raises(UserError, match=message):
            external(pope_with({"evaluate": entry}))[0](outcomes)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([{"evaluate": {}}], r"pope.yaml: metrics: evaluate: key 'path' is missing"),
        ([{"evaluate": {"path": "gone.py"}}], r"metrics: evaluate: path: .*gone.py: no such file"),
        ([{"evaluate": {"path": "m", "answers": "numbers"}}], r"evaluate: answers: .*did you mean 'number'"),
        ([{"evaluate": {"path": "m", "arg": 1}}], r"evaluate: unknown key 'arg'"),
        ([{"evaluate": {"path": "m"}}] * 2, r"pope.yaml: metrics: 'evaluate:m' is named twice"),
        (["accuracy"], r"pope.yaml: metrics: 'accuracy' is named twice"),
        (["vqa_accuracy"], r"pope.yaml: metrics: vqa_accuracy is the mean score of `verifier: vqa`, not of exact"),
    ],
)
def test_mistakes_in_the_task_file(metrics: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pope_with(*metrics)


def test_the_score_itself_must_be_one_that_can_be_resampled() -> None:
    raw = load_layered(Path(load_task("pope").where))
    with pytest.raises(UserError, match=r"metrics: begins with one that cannot be resampled"):
        task_from({**raw, "metrics": [{"evaluate": {"path": "exact_match"}}]}, "pope.yaml")


def test_changed_code_is_loaded_anew(tmp_path: Path) -> None:
    code, outcomes = tmp_path / "mine.py", random_answers(0)
    for half in ("0.5", "0.25"):
        code.write_text((LOCAL / "share_right.py").read_text().replace("0.5", half))
        assert float(external(pope_with({"evaluate": {"path": str(code), "result": "half"}}))[0](outcomes)) == float(
            half
        )


def test_other_code_is_another_definition(tmp_path: Path) -> None:
    code = Path(shutil.copy(LOCAL / "share_right.py", tmp_path / "mine.py"))
    first = pope_with({"evaluate": {"path": str(code)}}).definition_hash()
    assert pope_with({"evaluate": {"path": str(code)}}).definition_hash() == first
    code.write_text(code.read_text() + "\n")
    assert pope_with({"evaluate": {"path": str(code)}}).definition_hash() != first
