"""Rows and results do not choose which files of a machine are looked at: paths stay in the folder they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtune.analysis.records import read_results
from mmtune.common.errors import RowError, UserError
from mmtune.data.sources.readers import BadRows, read_conversations
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.task import load_task


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of rows beside a picture that is none of theirs, with links of every kind to it."""
    private, rows = tmp_path / "private", tmp_path / "rows"
    for folder in (private, rows / "images", rows / "inner"):
        folder.mkdir(parents=True)
    for file in (private / "own.png", rows / "fine.png", rows / "images" / "fine2.png"):
        Image.new("RGB", (4, 4)).save(file)
    (rows / "link.png").symlink_to(private / "own.png")
    (rows / "images" / "link2.png").symlink_to("../../private/own.png")
    (rows / "folder").symlink_to(private)
    (rows / "inner" / "again").symlink_to("../folder")
    (rows / "near.png").symlink_to("fine.png")
    return rows


OUTSIDE = (
    "../private/own.png",
    "images/../../private/own.png",
    "link.png",
    "link2.png",
    "folder/own.png",
    "inner/again/own.png",
    "ABSOLUTE",
)


def written(place: Path, kind: str, path: str) -> Path:
    """One row that shows a photo, as a file of this kind."""
    if path == "ABSOLUTE":
        path = str(place.parent / "private" / "own.png")
    plain: dict[str, Any] = {"prompt": "What is it?", "completion": "A photo.", "image": path}
    if kind == "parquet":
        row = plain | {"image": {"bytes": None, "path": path}}
        pq.write_table(pa.Table.from_pylist([row]), place / "rows.parquet")
        return place / "rows.parquet"
    part = {"type": "image", "path": path}
    content = [part, {"type": "text", "text": "What is it?"}]
    messages = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A photo."}]}
    file = place / "rows.jsonl"
    file.write_text(json.dumps(messages if kind == "messages" else plain) + "\n")
    return file


@pytest.mark.parametrize("kind", ["plain", "messages", "parquet"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_of_a_row_leaves_its_folder(place: Path, kind: str, path: str) -> None:
    file = written(place, kind, path)
    with pytest.raises(RowError, match=r"row 1: the photo .* lies outside .*--data\.train\.image_root"):
        list(read_conversations(str(file)))
    skipped = BadRows("skip")
    assert list(read_conversations(str(file), image_root=str(place), bad_rows=skipped)) == []
    assert len(skipped.skipped) == 1


@pytest.mark.parametrize("path", ["fine.png", "images/fine2.png", "fine2.png", "near.png", "inner/../fine.png"])
def test_paths_that_stay_are_taken(place: Path, path: str) -> None:
    [conversation] = read_conversations(str(written(place, "plain", path)))
    [photo] = conversation.images
    assert isinstance(photo, Path)
    assert photo.resolve().is_relative_to(place.resolve())


def test_whoever_names_the_folder_decides(place: Path) -> None:
    file = written(place, "plain", "ABSOLUTE")
    [conversation] = read_conversations(str(file), image_root=str(place.parent))
    assert conversation.images == (place.parent / "private" / "own.png",)


def test_links_of_one_s_own_can_be_followed_and_nothing_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_FOLLOW_LINKS", "1")
    for path in ("link.png", "folder/own.png"):
        [conversation] = read_conversations(str(written(place, "plain", path)))
        assert conversation.images == (place / path,)
    for path in ("../private/own.png", "ABSOLUTE"):
        with pytest.raises(RowError, match="lies outside"):
            list(read_conversations(str(written(place, "plain", path))))


def test_rows_of_the_hub_show_what_the_hub_s_libraries_keep(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    kept = tmp_path / "kept"
    kept.mkdir()
    Image.new("RGB", (4, 4)).save(kept / "fine.png")

    def shown(photo: Path | str) -> list[Any]:
        row = {"prompt": "What?", "completion": "This.", "image": str(photo)}
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
        monkeypatch.setattr("mmtune.data.sources.readers.kept_files", lambda: (kept,))
        return [photo for conversation in read_conversations("me/mine") for photo in conversation.images]

    assert shown(kept / "fine.png") == [kept / "fine.png"]
    monkeypatch.chdir(place)
    with pytest.raises(RowError, match=r"me/mine, row 1: the photo .* lies outside"):
        shown(place / "fine.png")
    with pytest.raises(RowError, match="does not exist"):  # and not that of the folder one happens to stand in
        shown("near.png")


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_photo_of_a_task_lies_outside_the_data_root(place: Path, path: str) -> None:
    def rows_with(named: str) -> Any:
        file = place / "hub/lmms-lab/ai2d/default/test.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        cell = {"bytes": None, "path": named}
        row = {"image": cell, "question": "Which?", "options": ["this", "that"], "answer": "0"}
        pq.write_table(pa.Table.from_pylist([row]), file)
        return load_rows(load_task("ai2d"), place, limit=None).rows[0][1]["image"]

    assert rows_with("fine.png").data == (place / "fine.png").read_bytes()
    named = str(place.parent / "private" / "own.png") if path == "ABSOLUTE" else path
    with pytest.raises(UserError, match=r"ai2d\.yaml: images: row 0: column 'image'.*(lies outside|holds no photo)"):
        rows_with(named)


@pytest.mark.parametrize("name", ["../../private", "/private", "a/b", "..\\private", "a\0", ""])
def test_results_name_no_samples_elsewhere(name: str, tmp_path: Path) -> None:
    task = {"modality": "language", "version": 1, "n": 1, "metric": "accuracy", "score": 1.0, "stderr": 0.0}
    task |= {"unparsed": 0.0, "protocol": "blind", "dataset": {}}
    (tmp_path / "results.json").write_text(json.dumps({"tasks": {name: task}}))
    with pytest.raises(UserError, match=r"results\.json: task .*not a name that mmtune eval writes"):
        read_results(tmp_path)
