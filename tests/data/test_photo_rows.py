"""Photos of rows: where they are found, how they decode, and what stands in cells."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_builders import MESSAGES, picture, said
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtune.common.errors import RowError, UserError
from mmtune.data.images import load_image
from mmtune.data.sources.readers import BadRows, read_conversations

WriteLines = Callable[..., str]


def test_photos_are_found_beside_the_file_in_images_and_under_the_root(write_lines: WriteLines, tmp_path: Path) -> None:
    row = {"conversations": said("<image>"), "image": "a.png"}
    source = write_lines([row])
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "images", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(picture())
        root = str(elsewhere) if folder == elsewhere else None
        [conversation] = read_conversations(source, image_root=root)
        assert conversation.images == (folder / "a.png",)
    with pytest.raises(UserError, match="no such folder"):
        list(read_conversations(source, image_root=str(tmp_path / "nowhere")))


def test_photos_without_marks_come_before_the_question_except_in_llava_rows(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    parts = [{"type": "text", "text": "See "}, {"type": "image", "path": "b.png"}]
    rows = [
        {"prompt": "What?", "completion": "That.", "image": "a.png"},
        {"messages": MESSAGES, "images": ["a.png", "b.png"]},
        {"instruction": "What?", "output": "That.", "image": "a.png", "images": []},
        {"messages": [{"role": "user", "content": parts}, MESSAGES[1]]},
    ]  # fmt: skip
    read = list(read_conversations(write_lines(rows)))
    assert [c.turns[0].text for c in read] == [
        "<image>\nWhat?",
        "<image>\n<image>\na",
        "<image>\nWhat?",
        "See <image>",
    ]
    assert [[p.name for p in c.images if isinstance(p, Path)] for c in read] == [
        ["a.png"], ["a.png", "b.png"], ["a.png"], ["b.png"],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "truncated", "not a picture", "folder"])
def test_photos_that_do_not_decode_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "not a picture":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(RowError) as error:
        load_image(path, "rows.jsonl, row 7")
    assert str(error.value).startswith(f"rows.jsonl, row 7: the photo {path} ")
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]),
    cut=st.integers(0, 800),
    spoil=st.lists(st.tuples(st.integers(8, 120), st.integers(0, 255)), max_size=3),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_photos_decode_or_are_row_errors(kind: str, cut: int, spoil: list[tuple[int, int]]) -> None:
    stream = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(stream, kind)
    data = bytearray(stream.getvalue())
    for at, value in spoil:
        data[at % len(data)] = value
    with contextlib.suppress(RowError):  # and nothing else
        assert load_image(bytes(data[: len(data) - cut % len(data)]), "here").mode == "RGB"


def test_parquet_rows_with_photos_of_every_shape(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(picture(2))
    table = pa.table(
        {
            "conversations": [said("<image>\nWhat?")] * 2 + [said("What?")],
            "image": pa.array([{"bytes": picture(1), "path": "x.png"}, {"bytes": None, "path": "b.png"}, None]),
        }
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    first, second, third = read_conversations(str(path))
    assert first.images == (picture(1),)
    assert second.images == (tmp_path / "b.png",)
    assert third.images == ()
    assert third.where == f"{path}, row 3"


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_conversations(str(path)))


def test_lists_of_photos_of_hub_sets_stay_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

    stream = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(stream, "PNG")
    photo = {"bytes": stream.getvalue(), "path": None}
    turns = [{"role": "user", "content": "<image>\n<image>\nSame?"}, {"role": "assistant", "content": "Yes."}]
    rows = datasets.Dataset.from_list([{"messages": turns, "images": [photo, photo]}])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    [conversation] = read_conversations("owner/name")
    assert conversation.images == (photo["bytes"],) * 2


def test_photos_deep_in_hub_rows_stay_encoded_and_null_structs_mean_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

    photo = {"type": "image", "image": {"bytes": picture(), "path": "x.png"}, "index": None}
    question = {"type": "text", "text": "?", "image": None}
    asked = {"role": "user", "content": [photo, question]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "weight": 1.0}
    call = {"function": {"name": "f", "arguments": None}}
    rows = [
        {"messages": [asked, said | {"tool_calls": [call]}], "tools": [call], "history": None},
        {"messages": [asked, said], "tools": [{"function": {"name": None}}]},
    ]
    dataset = datasets.Dataset.from_list(rows)
    turn = dataset.features["messages"].feature
    part = turn["content"].feature | {"image": datasets.Image()}
    dataset = dataset.cast_column("messages", datasets.List(turn | {"content": datasets.List(part)}))
    assert isinstance(dataset[1]["messages"][0]["content"][0]["image"], Image.Image)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    bad_rows = BadRows("skip")
    [conversation] = read_conversations("owner/name", bad_rows=bad_rows)
    assert conversation.images == (picture(),)
    assert [turn.text for turn in conversation.turns] == ["<image>?", "Yes."]
    assert "row 1: has 'tools'" in bad_rows.skipped[0]
    assert bad_rows.unread == {}


def test_photos_are_seen_as_people_see_them(tmp_path: Path) -> None:
    upright = Image.new("RGB", (8, 4), "red")
    upright.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, as telephones write them
    upright.save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png", "")
    assert turned.size == (4, 8)
    assert turned.getpixel((0, 0)) == (0, 0, 255)
    assert turned.getpixel((0, 7)) == (255, 0, 0)
    deep = np.array([[0, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert [load_image(tmp_path / "deep.png", "").getpixel((x, 0)) for x in range(3)] == [
        (v,) * 3 for v in (0, 127, 255)
    ]
