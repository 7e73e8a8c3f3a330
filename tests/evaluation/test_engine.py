"""The engine with models whose answers are known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_models import BOOLQ, OPENBOOKQA, POPE, SUITE, Scripted, picture, small_data, write_rows

import mmtune.evaluation.run.chunks as chunks
from mmtune.common.errors import UserError
from mmtune.common.files import resource_folder
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.evaluation.score.metrics import METRICS, Floats, Outcomes


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SUITE)
    return tmp_path / "small.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path)


def oracle(prompt: str) -> str:
    """Finds the row again by its question, and knows the answer."""
    for row in BOOLQ:
        if prompt.endswith(f"\n{row['question']}?"):
            return ' Yes."' if row["answer"] else "false, of course"
    for row in POPE:
        if row["question"] in prompt:
            return row["answer"]
    row = next(row for row in OPENBOOKQA if f"{row['question_stem']}..." in prompt)
    return row["choices"]["text"]["ABCD".index(row["answerKey"])]


def run(model: Scripted, suite: Path, data: Path, **options: Any) -> Results:
    return evaluate(model, suite, data_root=data, progress=False, **options)


def test_the_oracle_is_always_right(suite: Path, data: Path) -> None:
    results = run(Scripted(oracle), suite, data)
    assert {name: task.score for name, task in results.tasks.items()} == {
        "boolq": 1,
        "openbookqa": 1,
        "pope": 1,
    }
    assert {name: task.stderr for name, task in results.tasks.items()} == {
        "boolq": 0,
        "openbookqa": 0,
        "pope": 0,
    }
    assert results.averages == {"language": 1, "vision": 1, "overall": 1}
    assert [sample.id for sample in results.samples["boolq"]] == list(range(10))


def test_always_yes(suite: Path, data: Path) -> None:
    model = Scripted(lambda _: "Yes")
    results = run(model, suite, data)
    pope = results.tasks["pope"].metrics
    share = sum(row["answer"] == "yes" for row in POPE) / len(POPE)
    assert (pope["accuracy"], pope["precision"], pope["recall"], pope["yes_ratio"]) == (share, share, 1, 1)
    assert set(pope["groups"]) == {"random", "popular", "adversarial"}
    assert sum(group["n"] for group in pope["groups"].values()) == len(POPE)
    assert results.tasks["openbookqa"].unparsed == 1
    assert results.tasks["openbookqa"].score == 0
    assert results.averages["language"] == (0.5 + 0) / 2
    assert model.options["max_tokens"] == 4
    assert model.options["response_prefix"] == 'The best answer is "'
    assert "\n" in model.options["stop"]


def test_chunks_and_order_change_nothing(suite: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moody(prompt: str) -> str:
        return random.Random(prompt).choice(["yes", "no", "A", "B", "hm"])

    first = run(Scripted(moody), suite, data, batch_tokens=4096)
    monkeypatch.setattr(chunks, "QUESTIONS", 3)
    second = run(Scripted(moody), suite, data, batch_tokens=1)
    assert first.samples == second.samples
    assert [t.stderr for t in first.tasks.values()] == [t.stderr for t in second.tasks.values()]


def test_the_longest_come_first_in_chunks(suite: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**BOOLQ[n % 10], "passage": f"The number is {n}. " * (20 + n)} for n in range(10)]
    write_rows(data, "google/boolq", None, "validation", rows)
    monkeypatch.setattr(chunks, "QUESTIONS", 4)
    model = Scripted(oracle)
    run(model, suite, data, tasks=["boolq"])
    lengths = [len(prompt) for call in model.calls for prompt in call]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(call) for call in model.calls] == [4, 4, 2]


def test_text_tasks_are_asked_without_photos(suite: Path, data: Path) -> None:
    model = Scripted(oracle)
    results = run(model, suite, data)
    assert results.tasks["boolq"].cost["tower_passes"] == 0
    assert results.tasks["pope"].cost["tower_passes"] == len(POPE)
    assert results.cost["tower_passes"] == len(POPE)
    assert results.cost["prompt_tokens"] == model.usage["prompt_tokens"]


def test_what_is_written(suite: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run(Scripted(oracle), suite, data, out=out, limit=5)
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results.as_dict()))
    assert set(written) == {"suite", "model", "created", "versions", "template_date", "tasks", "averages", "cost"}
    assert {
        "modality",
        "n",
        "metric",
        "score",
        "stderr",
        "unparsed",
        "metrics",
        "dataset",
        "protocol",
    } <= set(written["tasks"]["pope"])
    assert set(written["tasks"]["pope"]["dataset"]) == {"path", "config", "split", "fingerprint"}
    assert set(written["cost"]) == {
        *("seconds", "prompt_tokens", "generated_tokens", "reused_tokens", "tower_passes"),
    }
    lines = [json.loads(line) for line in (out / "samples" / "pope.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(5))
    assert {"id", "prompt", "response", "prediction", "target", "score", "image"} <= set(lines[0])
    assert len(lines[0]["image"]) == 64
    assert sorted(p.name for p in out.iterdir()) == ["answers.sqlite", "results.json", "samples", "thumbnails"]


def test_averages_of_a_missing_modality_are_null(suite: Path, data: Path, tmp_path: Path) -> None:
    run(Scripted(oracle), suite, data, out=tmp_path / "out", tasks=["boolq"])
    assert json.loads((tmp_path / "out" / "results.json").read_text())["averages"] == {
        "language": 1,
        "vision": None,
        "overall": 1,
    }


def test_a_second_run_asks_nothing(suite: Path, data: Path, tmp_path: Path) -> None:
    first = run(Scripted(oracle), suite, data, out=tmp_path / "out")
    again = Scripted(lambda _: pytest.fail("asked again"))
    second = run(again, suite, data, out=tmp_path / "out")
    assert second.tasks == first.tasks
    assert second.samples == first.samples
    assert second.cost == first.cost
    afresh = Scripted(oracle)
    run(afresh, suite, data, out=tmp_path / "out", resume=False)
    assert afresh.asked == 28


Change = Callable[[Path, Path], dict[str, Any]]


def other_rows(_: Path, data: Path) -> dict[str, Any]:
    write_rows(data, "google/boolq", None, "validation", [{**BOOLQ[0], "passage": "Other."}, *BOOLQ[1:]])
    return {}


def other_wording(out: Path, _: Path) -> dict[str, Any]:
    task = (resource_folder("eval_suites") / "tasks" / "boolq.yaml").read_text()
    (out.parent / "boolq.yaml").write_text(task.replace("Please answer", "Do answer"))
    (out.parent / "small.yaml").write_text(SUITE.replace("boolq", "boolq.yaml"))
    return {}


def lost_answers(out: Path, _: Path) -> dict[str, Any]:
    (out / "answers.sqlite").unlink()
    return {}


@pytest.mark.parametrize(
    "change",
    [
        lambda out, data: {"fingerprint": "two"},
        lambda out, data: {"protocol": "mlan"},
        lambda out, data: {"limit": 9},
        lambda out, data: {"answering": "likelihood"},
        lambda out, data: {"resume": False},
        other_rows,
        other_wording,
        lost_answers,
    ],
    ids=["model", "protocol", "limit", "answering", "no resume", "rows", "task file", "lost answers"],
)
@pytest.mark.near_ties  # a script gives all choices the same figure
def test_what_no_longer_holds_is_run_again(suite: Path, data: Path, tmp_path: Path, change: Change) -> None:
    out = tmp_path / "out"
    run(Scripted(oracle), suite, data, out=out, tasks=["boolq"])
    options = change(out, data)
    model = Scripted(oracle, options.pop("fingerprint", "one"))
    run(model, suite, data, out=out, tasks=["boolq"], **options)
    assert model.asked >= 9


def test_what_was_made_of_answers_is_made_again_without_asking(suite: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(Scripted(oracle), suite, data, out=out, seed=1)
    samples = (out / "samples" / "boolq.jsonl").read_bytes()
    (out / "samples" / "boolq.jsonl").write_bytes(samples[:-30])
    (out / "samples" / "pope.jsonl").unlink()
    (out / "results.json").unlink()
    model = Scripted(lambda _: pytest.fail("asked again"))
    second = run(model, suite, data, out=out, seed=2)
    assert (out / "samples" / "boolq.jsonl").read_bytes() == samples
    assert second.samples == first.samples
    assert second.tasks["boolq"].key != first.tasks["boolq"].key


def test_a_kill_keeps_what_was_finished(suite: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def dies(prompt: str) -> str:
        if "<image>" in prompt:
            raise KeyboardInterrupt
        return oracle(prompt)

    with pytest.raises(KeyboardInterrupt):
        run(Scripted(dies), suite, data, out=out)
    assert list(json.loads((out / "results.json").read_text())["tasks"]) == ["boolq", "openbookqa"]
    model = Scripted(oracle)
    results = run(model, suite, data, out=out)
    assert model.asked == len(POPE)
    assert list(results.tasks) == ["boolq", "openbookqa", "pope"]


def test_a_kill_while_one_task_is_run_again_keeps_the_others(suite: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(Scripted(oracle), suite, data, out=out)
    (out / "answers.sqlite").unlink()
    seen: list[list[str]] = []

    def watching(prompt: str) -> str:
        seen.append(list(json.loads((out / "results.json").read_text())["tasks"]))
        return oracle(prompt)

    run(Scripted(watching), suite, data, out=out)
    assert seen[0] == ["boolq", "openbookqa", "pope"]
    assert list(json.loads((out / "results.json").read_text())["tasks"]) == ["boolq", "openbookqa", "pope"]


def test_tasks_run_one_after_the_other_add_up(suite: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(Scripted(oracle), suite, data, out=out, tasks=["pope"])
    results = run(Scripted(oracle), suite, data, out=out, tasks=["boolq"])
    assert list(results.tasks) == ["boolq", "pope"]
    another = run(Scripted(oracle, "two"), suite, data, out=out, tasks=["boolq"])
    assert list(another.tasks) == ["boolq"]  # what another model said is not mixed in


def test_a_photo_that_does_not_decode_fails_alone(suite: Path, data: Path) -> None:
    rows = [*POPE[:3], {**POPE[3], "image": {"bytes": b"no picture", "path": "x"}}, *POPE[4:]]
    write_rows(data, "lmms-lab/POPE", None, "test", rows)
    result = run(Scripted(oracle), suite, data, tasks=["pope"])
    failed = result.samples["pope"][3]
    assert (failed.prediction, failed.score, failed.response) == (None, 0, "")
    assert failed.error
    assert result.tasks["pope"].failed == 1
    assert result.tasks["pope"].unparsed == 1 / len(POPE)
    assert result.tasks["pope"].score == (len(POPE) - 1) / len(POPE)


def undecodable(data: Path, rows: Sequence[int]) -> None:
    bad = {"bytes": b"no picture", "path": "x"}
    write_rows(
        data, "lmms-lab/POPE", None, "test", [{**r, "image": bad} if n in rows else r for n, r in enumerate(POPE)]
    )


def test_failed_photos_are_named_at_the_end(suite: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undecodable(data, [3])
    evaluate(Scripted(oracle), suite, data_root=data, tasks=["boolq", "pope"])
    why = "the photo cannot be decoded: UnidentifiedImageError"
    last = f"pope: row 3 counts as wrong: {why} (`error` in samples/pope.jsonl)"
    assert capsys.readouterr().err.splitlines()[-1] == last
    undecodable(data, range(12))
    evaluate(Scripted(oracle), suite, data_root=data, tasks=["pope"])
    said = "pope: 12 rows (rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …) count as wrong: the photo cannot be decoded"
    assert said in " ".join(capsys.readouterr().err.split())


def test_strict_stops_at_the_first_failed_photo(suite: Path, data: Path, tmp_path: Path) -> None:
    undecodable(data, [9, 3])
    model = Scripted(oracle)
    with pytest.raises(UserError, match=r"task pope, row 3: the photo cannot be decoded.*leave out --strict"):
        run(model, suite, data, strict=True)
    out = tmp_path / "out"
    assert run(model, suite, data, out=out, tasks=["pope"]).tasks["pope"].failed == 2
    with pytest.raises(UserError, match=r"task pope, row 3"):  # among answers taken over, too
        run(model, suite, data, out=out, tasks=["pope"], strict=True)


def test_a_photo_is_decoded_once_for_all_its_questions(suite: Path, data: Path) -> None:
    model = Scripted(oracle)
    run(model, suite, data, tasks=["pope"])
    assert len(model.photos) == 2


@pytest.mark.parametrize(("given", "kept"), [(None, True), (False, False), (True, True)])
def test_prefixes_are_shared_as_the_flag_says(suite: Path, data: Path, given: bool | None, kept: bool) -> None:
    seen: list[bool] = []

    def answer(prompt: str) -> str:
        seen.append(model.share_prefixes)
        return oracle(prompt)

    model = Scripted(answer)
    run(model, suite, data, tasks=["boolq"], share_prefixes=given)
    assert set(seen) == {kept}
    assert model.share_prefixes is True  # as the model had it before


def test_a_metric_that_gives_no_number(
    suite: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_number(outcomes: Outcomes, positive: str = "yes") -> Floats:
        return np.full(outcomes.score.shape[:-1], np.nan)

    monkeypatch.setitem(METRICS, "f1", no_number)
    metrics = run(Scripted(oracle), suite, data, out=tmp_path / "out", tasks=["pope"]).tasks["pope"].metrics
    assert (metrics["f1"], metrics["groups"]["popular"]["f1"], metrics["recall"]) == (None, None, 1)
    monkeypatch.setitem(METRICS, "accuracy", no_number)
    with pytest.raises(UserError, match=r"boolq.yaml: metrics: accuracy gives no number .*name another one first"):
        run(Scripted(oracle), suite, data, tasks=["boolq"])


def test_a_null_photo_is_asked_without_one(tmp_path: Path) -> None:
    rows = [
        {"image": image, "question": f"Q{n}?", "choices": ["a", "b"], "answer": n % 2, "hint": ""}
        for n, image in enumerate([picture(), None, None, picture()])
    ]
    write_rows(tmp_path, "lmms-lab/ScienceQA", "ScienceQA-FULL", "test", rows)
    results = evaluate(Scripted(lambda _: "A"), "scienceqa", data_root=tmp_path, progress=False)
    groups = results.tasks["scienceqa"].metrics["groups"]
    assert {name: group["n"] for name, group in groups.items()} == {"with a photo": 2, "without a photo": 2}
    assert [sample.image is None for sample in results.samples["scienceqa"]] == [False, True, True, False]


def test_a_text_only_model_is_told_before_anything_runs(suite: Path, data: Path) -> None:
    model = Scripted(oracle)
    model.capabilities = frozenset({"loglikelihood"})  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"no vision tower .*, but task pope shows photos; give --tasks boolq,openb"):
        run(model, suite, data)
    assert model.asked == 0
    assert run(model, suite, data, tasks=["boolq"]).tasks["boolq"].score == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, r"--limit 0: must be at least 1"),
        ({"batch_tokens": 0}, r"--batch-tokens 0: must be at least 1"),
        ({"seed": -1}, r"--seed -1: must be at least 0"),
        ({"protocol": "blnd"}, r"--protocol: unknown 'blnd'; did you mean 'blind'"),
        ({"tasks": ["pop"]}, r"--tasks: 'pop' is not in suite small; did you mean 'pope'"),
    ],
)
def test_bad_arguments(suite: Path, data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(Scripted(oracle), suite, data, **options)


def test_bad_folders(suite: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file: is a file"):
        run(Scripted(oracle), suite, data, out=tmp_path / "file")
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results.json: not valid JSON"):
        run(Scripted(oracle), suite, data, out=out)
    (out / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results.json: holds no results; delete it"):
        run(Scripted(oracle), suite, data, out=out)
