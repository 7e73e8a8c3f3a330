"""Reading rows: fingerprints, joins, photos, and every way the data can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_models import BOOLQ, picture, small_data, write_rows

from mmtune.common.errors import UserError
from mmtune.data.images import EncodedImage, ImageDecodeError
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import check_data, load_rows
from mmtune.evaluation.tasks.task import load_task, task_from

BOOLQ_TASK = load_task("boolq")


def fingerprint(root: Path, limit: int | None = None) -> str:
    return load_rows(BOOLQ_TASK, root, limit=limit).fingerprint


def test_the_fingerprint_is_of_values_not_of_files(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "google/boolq", None, "validation", BOOLQ)
    first = fingerprint(tmp_path)
    table = pq.read_table(file).append_column("unused", pa.array(range(len(BOOLQ))))
    pq.write_table(
        table.select(["passage", "unused", "answer", "question"]), file, compression="zstd", row_group_size=3
    )
    assert fingerprint(tmp_path) == first
    assert fingerprint(tmp_path, limit=5) != first
    write_rows(tmp_path, "google/boolq", None, "validation", [*BOOLQ[1:], BOOLQ[0]])
    assert fingerprint(tmp_path) != first
    write_rows(tmp_path, "google/boolq", None, "validation", [{**BOOLQ[0], "answer": False}, *BOOLQ[1:]])
    assert fingerprint(tmp_path) != first


def test_photos_are_kept_once_and_decoded_late(tmp_path: Path) -> None:
    rows = load_rows(load_task("pope"), small_data(tmp_path), limit=None).rows
    photos = [row["image"] for _, row in rows]
    assert all(isinstance(photo, EncodedImage) for photo in photos)
    assert len({id(photo) for photo in photos}) == 2
    assert photos[0].open().size == (8, 8)
    with pytest.raises(ImageDecodeError):
        EncodedImage(b"no picture", "x").open()


def gqa(root: Path, questions: list[dict[str, Any]], images: list[dict[str, Any]]) -> Path:
    write_rows(root, "lmms-lab/GQA", "testdev_balanced_instructions", "testdev", questions)
    write_rows(root, "lmms-lab/GQA", "testdev_balanced_images", "testdev", images)
    return root


def test_joined_photos(tmp_path: Path) -> None:
    questions = [{"id": str(n), "imageId": f"n{n % 2}", "question": "What?", "answer": "dog"} for n in range(3)]
    images = [{"id": f"n{n}", "image": picture(n)} for n in range(2)]
    task = load_task("gqa")
    check_data(task, gqa(tmp_path, questions, images))
    rows = load_rows(task, tmp_path, limit=None).rows
    assert [row["image"].data for _, row in rows] == [picture(n % 2)["bytes"] for n in range(3)]
    gqa(tmp_path, questions, images[:1])
    with pytest.raises(UserError, match=r"testdev_balanced_images/testdev.parquet: no photo with id 'n1'"):
        load_rows(task, tmp_path, limit=None)
    gqa(tmp_path, questions, [{"id": "n0", "picture": picture()}])
    with pytest.raises(UserError, match=r"gqa.yaml: dataset: images: column: .*no column 'image'"):
        check_data(task, tmp_path)


def test_filter_and_limit(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": a, "image": picture()} for a in ("yes", "circle", "teal", "no", "triangle")]
    write_rows(tmp_path, "vzhou842/easy-vqa", None, "test", rows)
    task = load_task("easy_vqa_shape")
    keep = Renderer(task, "blind").keeps
    assert [number for number, _ in load_rows(task, tmp_path, limit=None, keep=keep).rows] == [1, 4]
    assert [number for number, _ in load_rows(task, tmp_path, limit=1, keep=keep).rows] == [1]
    write_rows(tmp_path, "vzhou842/easy-vqa", None, "test", rows[:1])
    with pytest.raises(UserError, match=r"test.parquet: no row passes the filter of .*easy_vqa_shape.yaml"):
        load_rows(task, tmp_path, limit=None, keep=keep)


def test_missing_damaged_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data-root .*gone: no such folder"):
        check_data(BOOLQ_TASK, tmp_path / "gone")
    with pytest.raises(UserError, match=r"google/boolq/default/validation.parquet: no such file"):
        check_data(BOOLQ_TASK, tmp_path)
    file = write_rows(tmp_path, "google/boolq", None, "validation", BOOLQ)
    whole = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"validation.parquet: not a readable parquet file"):
        check_data(BOOLQ_TASK, tmp_path)
    file.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(UserError, match=r"validation.parquet: (damaged|not a readable)"):
        load_rows(BOOLQ_TASK, tmp_path, limit=None)
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), file)
    with pytest.raises(UserError, match=r"validation.parquet: holds no rows"):
        check_data(BOOLQ_TASK, tmp_path)


def test_a_missing_column_is_named_with_the_key_that_wants_it(tmp_path: Path) -> None:
    rows = [{"questions": "q", "answer": True, "passage": "p"}]
    write_rows(tmp_path, "google/boolq", None, "validation", rows)
    with pytest.raises(UserError, match=r"boolq.yaml: prompt: .*no column 'question'; did you mean 'questions'\?"):
        check_data(BOOLQ_TASK, tmp_path)


def test_a_column_that_holds_no_photo(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        "lmms-lab/ai2d",
        None,
        "test",
        [{"image": "a.png", "question": "q", "options": ["a"], "answer": "0"}],
    )
    with pytest.raises(UserError, match=r"ai2d.yaml: images: row 0: column 'image' holds no photo"):
        load_rows(load_task("ai2d"), tmp_path, limit=None)


def test_offline_the_hub_id_and_the_way_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr("mmtune.evaluation.tasks.rows.go_offline_if_unreachable", lambda: True)
    expected = r"google/boolq \(default, validation\).*--data-root DIR with hub/google/boolq/default/validation.parquet"
    with pytest.raises(UserError, match=expected):
        load_rows(BOOLQ_TASK, None, limit=None)


def test_rows_of_the_hub_have_the_fingerprint_of_the_parquet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    small_data(tmp_path)
    task = load_task("pope")
    local = load_rows(task, tmp_path, limit=None)
    file = tmp_path / "hub" / "lmms-lab" / "POPE" / "default" / "test.parquet"
    hub = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    hub = hub.cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    monkeypatch.setattr("mmtune.evaluation.tasks.rows.go_offline_if_unreachable", lambda: False)
    assert load_rows(task, None, limit=None).fingerprint == local.fingerprint


def test_templates_cannot_reach_python() -> None:
    raw = {
        "name": "mine",
        "version": 1,
        "modality": "language",
        "dataset": {"path": "a/b", "split": "test"},
        "prompt": "{{ question.__class__.__mro__ }}",
        "target": "x",
        "answer": "short",
        "max_tokens": 1,
        "metrics": ["accuracy"],
    }
    with pytest.raises(UserError, match=r"mine.yaml: prompt: row 3: .*unsafe|undefined"):
        Renderer(task_from(raw, "mine.yaml"), "blind").question(3, {"question": "q"})
