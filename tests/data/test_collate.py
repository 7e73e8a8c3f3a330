"""Packed batches: what each position predicts, counts and shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import encoded_photo, fake_preprocess
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.utilities import move_data_to_device

from mmtune.common.errors import RowError
from mmtune.data.collate import PackedBatch, pack
from mmtune.data.encoding import IGNORED, IMAGE_TOKEN, Example, ModelInputs

DOCUMENT = st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=12)


def example(ids: list[int], supervised: list[bool], images: tuple[Any, ...] = (), where: str = "r") -> Example:
    return Example(np.asarray(ids, dtype=np.int32), np.asarray(supervised, dtype=bool), images, where)


@given(documents=st.lists(DOCUMENT, min_size=1, max_size=6))
def test_every_position_predicts_the_next_learnt_token_of_its_own_document(documents: Any) -> None:
    examples = [example([i for i, _ in d], [s for _, s in d], where=f"row {n}") for n, d in enumerate(documents)]
    batch = pack(examples, ModelInputs(None, None))  # type: ignore[arg-type]
    expected_targets, expected_positions, expected_documents = [], [], []
    for number, document in enumerate(documents):
        following = [i if s else IGNORED for i, s in document[1:]] + [IGNORED]
        expected_targets += following
        expected_positions += range(len(document))
        expected_documents += [number] * len(document)
    assert batch.input_ids.tolist() == [i for d in documents for i, _ in d]
    assert batch.targets.tolist() == expected_targets
    assert batch.position_ids.tolist() == expected_positions
    assert batch.document_ids.tolist() == expected_documents
    assert batch.document_lengths == [len(d) for d in documents]
    assert batch.supervised_tokens == sum(s for d in documents for _, s in d[1:])
    assert batch.where == tuple(f"row {n}" for n in range(len(documents)))
    assert batch.pixels is None
    assert {t.dtype for t in (batch.input_ids, batch.targets, batch.position_ids)} == {torch.int64}


def photo_batch(tmp_path: Path) -> tuple[PackedBatch, list[bytes]]:
    shades = [encoded_photo(shade) for shade in (10, 90, 200)]
    path = tmp_path / "photo.png"
    path.write_bytes(shades[1])
    rows = [
        example([IMAGE_TOKEN, 5, IMAGE_TOKEN, 6], [False, False, False, True], (shades[0], path)),
        example([7, 8], [False, True]),
        example([IMAGE_TOKEN, 9], [False, True], (shades[2],)),
        example([IMAGE_TOKEN, 9], [False, True], (path,)),
    ]
    inputs = ModelInputs(None, None, tokens_per_image=1, preprocess=fake_preprocess)  # type: ignore[arg-type]
    return pack(rows, inputs), shades


def test_photos_come_in_the_order_of_their_tokens(tmp_path: Path) -> None:
    batch, _ = photo_batch(tmp_path)
    assert batch.pixels is not None
    assert batch.pixels.shape == (4, 3, 8, 8)
    shades = (batch.pixels[:, 0].mean(dim=(1, 2)) * 255).round().int().tolist()
    assert shades == [10, 90, 200, 90]
    assert batch.image_tokens == 4
    keys = batch.image_keys
    assert keys[1] == keys[3]
    assert len(set(keys)) == 3


def test_photo_keys_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Workers begun afresh (as on macOS) have another hash seed each."""
    code = (
        "import sys; from pathlib import Path; from mmtune.data.collate import _image_key;"
        "print(_image_key(Path('a/b.jpg')), _image_key(b'x'))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_photo_that_does_not_decode_names_its_row() -> None:
    inputs = ModelInputs(None, None, tokens_per_image=1, preprocess=fake_preprocess)  # type: ignore[arg-type]
    with pytest.raises(RowError, match=r"rows\.json, row 8: the photo of 3 bytes"):
        pack([example([IMAGE_TOKEN, 1], [False, True], (b"abc",), "rows.json, row 8")], inputs)


def test_batches_move_between_devices_as_lightning_moves_them(tmp_path: Path) -> None:
    batch, _ = photo_batch(tmp_path)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, PackedBatch)
    assert moved.input_ids.device.type == "meta"
    assert moved.pixels is not None
    assert moved.pixels.device.type == "meta"
    assert moved.image_keys == batch.image_keys
    assert batch.input_ids.device.type == "cpu"


def test_lightning_converts_a_batch(tmp_path: Path) -> None:
    """Its precision plugins, DeepSpeed's too, convert floats and leave the rest."""
    batch, _ = photo_batch(tmp_path)
    assert batch.pixels is not None
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert isinstance(converted, PackedBatch)
    assert converted.pixels is not None
    assert converted.pixels.dtype == torch.bfloat16
    assert batch.pixels.dtype == torch.float32
    assert torch.equal(converted.input_ids, batch.input_ids)
    assert converted.where == batch.where
