"""Images in the parts of a turn and in columns: each is shown where it stands, or a bad row that names it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_builders import ASKED, ROWS, SAID, encoded_photo

from mmtune.data.conversation import Conversation
from mmtune.data.sources.image_cells import MOST_BYTES

A, B, C = (encoded_photo(shade, size=8) for shade in (1, 2, 3))


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def row_with(part: Any, **row: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}, SAID], **row}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": uri(A)},
        {"type": "image", "url": uri(A)},
        {"type": "image", "base64": base64.b64encode(A).decode()},
        {"type": "image", "image": base64.b64encode(A).decode()},
        {"type": "image", "source": {"type": "base64", "data": base64.b64encode(A).decode()}},
        {"type": "image_url", "image_url": {"url": uri(A), "detail": "low"}},
        {"type": "image_url", "image_url": uri(A, "image/PNG;charset=utf-8")},
        {"type": "input_image", "image_url": uri(A)},
        {"image": uri(A)},
        {"type": "image", "text": None, "index": None, "path": None, "image": {"bytes": None, "path": uri(A)}},
    ],
)  # fmt: skip
def test_photos_written_into_a_part(part: Any, read: Callable[[Any], Conversation]) -> None:
    conversation = read(row_with(part))
    assert conversation.images == (A,)
    assert conversation.turns[0].text == "<image>?"


def test_photos_written_into_the_image_column(read: Callable[[Any], Conversation], tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(C)
    written = [uri(A), base64.b64encode(B).decode(), (tmp_path / "a b.png").as_uri(), "a b.png"]
    turns = [ASKED | {"content": "<image>" * 4}, SAID]
    conversation = read({"conversations": turns, "images": written})
    assert [p if isinstance(p, bytes) else p.read_bytes() for p in conversation.images] == [A, B, C, C]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("https://example.com/a.png", "the photo https://example.com/a.png is a web address; download it"),
        ("data:image/png,abc", "is no data: address of a picture in base64"),
        ("data:image/png;base64,ab*d", "a photo is not valid base64"),
        ("data:image/png;base64," + "A" * (MOST_BYTES // 3 * 4 + 8), "has more than 32 MiB; keep it as a file"),
        ({"kind": "png"}, "an image has the keys kind; known are 'bytes'"),
        (True, "an image is bool; expected a path"),
    ],
)
def test_photos_that_are_refused_by_name(cell: Any, message: str, refused: Callable[[Any], str]) -> None:
    assert message in refused({"prompt": "a", "completion": "b", "image": cell})


def test_image_parts_with_an_index_show_that_photo_of_the_row(
    read: Callable[[Any], Conversation], refused: Callable[[Any], str]
) -> None:
    def row(*indexes: Any, images: Any = None) -> dict[str, Any]:
        parts = [{"type": "image", "index": index} for index in indexes]
        return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}, SAID],
                "images": images or [uri(A), uri(B), uri(C)]}  # fmt: skip

    assert read(row(2, 0, 1)).images == (C, A, B)
    assert read(row(2.0, 0.0, 1.0)).images == (C, A, B)
    assert read(row(1, 1, 0, 2)).images == (B, B, A, C)
    assert read(row(None, None, None)).images == (A, B, C)
    assert read(row(1, images=[None, uri(A)])).images == (A,)
    assert "index 3, and the row has no such photo" in refused(row(0, 1, 2, 3))
    assert "has the index -1" in refused(row(-1))
    assert "a photo and an index" in refused(row_with({"type": "image", "image": uri(A), "index": 0}, images=[uri(A)]))
    assert "1 <image> mark(s) but 3 photo(s)" in refused(row(1))


def test_marks_parts_and_columns_keep_their_order(read: Callable[[Any], Conversation]) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "<image>"}, {"type": "image", "image": uri(C)}]},
        SAID,
        {"role": "user", "content": "<image>?"},
        SAID,
    ]
    assert read({"messages": turns, "images": [uri(A), uri(B)]}).images == (A, C, B)


@pytest.mark.parametrize("images", [[None], [""], [{"bytes": None, "path": None}], "", None, []])
def test_no_photo_however_it_is_written(images: Any, read: Callable[[Any], Conversation]) -> None:
    for row in ROWS.values():
        assert read(row | {"images": images, "image": None}).images == ()


def test_two_columns_of_photos(read: Callable[[Any], Conversation], refused: Callable[[Any], str]) -> None:
    row = ROWS["chat messages"]
    assert read(row | {"image": uri(A), "images": [uri(A)]}).images == (A,)
    assert "has 'image' and 'images', which differ" in refused(row | {"image": uri(A), "images": [uri(B)]})
