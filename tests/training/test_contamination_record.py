"""`mmtune fit --unseen`: what a run writes down of the sets it is to be scored on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.common.errors import UserError
from mmtune.evaluation.contamination.callback import ContaminationCheck

Fit = Callable[..., int]
STORIES = [" ".join(f"{name}{n}" for n in range(16)) for name in ("owl", "fox", "bat")]
TASK = {
    "name": "stories", "version": 1, "modality": "language", "prompt": "{{ question }}", "target": "x",
    "answer": "short", "max_tokens": 4, "metrics": ["accuracy"],
    "dataset": {"path": "own/stories", "split": "test"},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "stories.yaml").write_text(json.dumps(TASK))
    file = folder / "hub" / "own" / "stories" / "default" / "test.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"question": story} for story in STORIES]), file)
    return folder


def trained(fit: Fit, out: Path, root: Path, lora_flags: list[str], rows: list[str], *flags: str) -> Any:
    source = out.parent / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": row, "completion": "Yes."}) + "\n" for row in rows))
    unseen = [f"--unseen={root / 'stories.yaml'}", f"--unseen_data_root={root}"]
    assert fit(out, f"--data.train.text=[{source}]", "--trainer.max_steps=1", *lora_flags, *unseen, *flags) == 0
    return json.loads((out / "unseen.json").read_text())


def test_the_run_says_what_it_trained_on(
    fit: Fit, root: Path, lora_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(fit, tmp_path / "run", root, lora_flags, ["clean", STORIES[1], "clean too"])
    assert found["sets"]["stories"]["verdict"] == "seen"
    assert [(hit["task_row"], hit["row"]) for hit in found["hits"] if hit["kind"] == "question"] == [(1, 2)]
    assert found["training_rows"] == 3
    assert list(found["fingerprints"]) == [str(tmp_path / "rows.jsonl")]
    line = f"stories against 3 training rows: 0 sets unseen, 1 seen (stories: 1 of 3 rows); {tmp_path}/run/unseen.json"
    assert line in capsys.readouterr().out.splitlines()


def test_rows_that_are_not_trained_on_do_not_count(fit: Fit, root: Path, lora_flags: list[str], tmp_path: Path) -> None:
    rows = ["clean", "clean too", *STORIES]
    hits = {}
    for seed in range(6):
        out = tmp_path / str(seed) / "run"
        out.parent.mkdir()
        flags = ("--data.train.total=2", f"--data.train.seed={seed}")
        found = trained(fit, out, root, lora_flags, rows, *flags)
        assert found["training_rows"] == 2
        hits[seed] = {hit["row"] for hit in found["hits"]}
    assert len(set(map(frozenset, hits.values()))) > 1
    assert all(drawn <= {3, 4, 5} for drawn in hits.values())


def test_without_the_flag_nothing_is_compared(fit: Fit, text_rows: Path, lora_flags: list[str], tmp_path: Path) -> None:
    assert fit(tmp_path / "run", f"--data.train.text=[{text_rows}]", "--trainer.max_steps=1", *lora_flags) == 0
    assert not (tmp_path / "run" / "unseen.json").exists()


def test_of_several_processes_the_first_alone_compares(root: Path, tmp_path: Path) -> None:
    check = ContaminationCheck(str(root / "stories.yaml"), root)
    other: Any = SimpleNamespace(is_global_zero=False)
    check.setup(other, other, "fit")
    assert not (tmp_path / "unseen.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unseen=locl9"], "--unseen: locl9: "),
        (["--unseen=local9", "--unseen_data_root={root}/none"], "--unseen_data_root {root}/none: no such folder"),
        (["--unseen_data_root={root}"], "--unseen_data_root {root}: says where"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    fit: Fit,
    root: Path,
    text_rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [flag.format(root=root) for flag in flags]
    assert fit(tmp_path / "run", f"--data.train.text=[{text_rows}]", *given) == 2
    assert capsys.readouterr().err.startswith(f"mmtune: error: {message.format(root=root)}")


def test_a_run_from_python_writes_the_same(
    fit: Fit, root: Path, llama: Path, lora_flags: list[str], tmp_path: Path
) -> None:
    of_command = trained(fit, tmp_path / "command", root, lora_flags, ["clean", STORIES[1]])
    check = ContaminationCheck(root / "stories.yaml", root)
    model = {"language": str(llama), "template": "chatml", "lora": {"r": 4}}
    run = mmtune.fit(model, tmp_path / "rows.jsonl", tmp_path / "python", max_steps=1, callbacks=[check])
    assert json.loads((run.path / "unseen.json").read_text()) == of_command
    with pytest.raises(UserError, match=r"data_root .*none: no such folder"):
        ContaminationCheck(root / "stories.yaml", root / "none")
