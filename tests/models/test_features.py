"""Features of photos on the disk: whole, shared by processes, and never another tower's."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mmtune.models.features import FeatureStore, image_digest
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import VisionTower, build_tower


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tower(tower_weights: Path) -> VisionTower:
    return build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2))


def of(tower: VisionTower, number: int) -> torch.Tensor:
    return torch.full((tower.shape.num_tokens, tower.shape.width), float(number))


def digests(*numbers: int) -> list[bytes]:
    return [image_digest(bytes([number])) for number in numbers]


def test_what_is_stored_is_read_by_photo(tower: VisionTower) -> None:
    store = FeatureStore(tower)
    assert store.rows() == {}
    one, two, three = digests(1, 2, 3)
    store.add({one: of(tower, 1), two: of(tower, 2)})
    store.add({two: of(tower, 99), three: of(tower, 3)})  # the second is there already
    reader = FeatureStore(tower).reader({b"\1": one, b"\2": two, b"\3": three})
    for photo, number in ((b"\3", 3), (b"\1", 1), (b"\2", 2)):
        assert torch.equal(reader(photo), of(tower, number))
        assert torch.equal(pickle.loads(pickle.dumps(reader))(photo), of(tower, number))  # as in a loader's process


def test_what_a_kill_cut_off_is_written_over(tower: VisionTower) -> None:
    store = FeatureStore(tower)
    one, two, three = digests(1, 2, 3)
    store.add({one: of(tower, 1), two: of(tower, 2)})
    features, photos = store.folder / "features.bin", store.folder / "photos.bin"
    with features.open("ab") as stream:  # killed before the digest was written
        stream.write(b"\xff" * (store.row_bytes // 2))
    with photos.open("ab") as stream:  # or in the middle of it
        stream.write(three[:7])
    store.add({three: of(tower, 3)})
    os.truncate(features, 3 * store.row_bytes - 1)  # and a disk that lost the end of the file
    assert list(store.rows()) == [one, two]
    store.add({three: of(tower, 3)})
    assert photos.stat().st_size == 3 * 32
    assert features.stat().st_size == 3 * store.row_bytes
    reader = store.reader({b"1": one, b"2": two, b"3": three})
    assert [float(reader(photo)[0, 0]) for photo in (b"1", b"2", b"3")] == [1, 2, 3]


def _add(tower: VisionTower, numbers: range) -> None:
    torch.set_num_threads(1)  # OpenMP's threads are not there in a forked process, which would wait for them
    for number in numbers:
        FeatureStore(tower).add({digests(number)[0]: of(tower, number)})


def test_processes_may_write_at_once(tower: VisionTower) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(tower, range(start, start + 40))) for start in (0, 20, 40)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = FeatureStore(tower)
    known = {bytes([n]): digests(n)[0] for n in range(80)}
    assert store.rows().keys() == set(known.values())
    assert (store.folder / "features.bin").stat().st_size == 80 * store.row_bytes
    reader = store.reader(known)
    assert all(torch.equal(reader(bytes([n])), of(tower, n)) for n in range(80))


def test_towers_that_differ_share_nothing(tower: VisionTower, tower_weights: Path) -> None:
    def folder(**options: object) -> Path:
        given = {"tower": "timm:test_vit", "weights": str(tower_weights), "grid": 2} | options
        return FeatureStore(build_tower(VisionOptions(**given))).folder  # type: ignore[arg-type]

    torch.manual_seed(0)
    others = [
        folder(weights="random"),
        folder(grid=1),
        folder(blocks=[1]),
        folder(fit="crop"),
        FeatureStore(build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2)).bfloat16()).folder,
    ]
    assert len({FeatureStore(tower).folder, *others}) == 6
    assert folder(standardise=True) == FeatureStore(tower).folder  # applied after reading


def test_half_precision_is_kept(tower: VisionTower, tower_weights: Path) -> None:
    half = build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2)).bfloat16()
    features = half.encode(torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0)))[0]
    assert features.dtype == torch.bfloat16
    store = FeatureStore(half)
    store.add({digests(1)[0]: features})
    assert torch.equal(store.reader({b"x": digests(1)[0]})(b"x"), features)


@pytest.mark.parametrize("library", ["pillow", "torch", "timm", "open_clip_torch"])
def test_features_of_other_versions_are_not_taken(
    library: str, tower: VisionTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, version = FeatureStore(tower).folder, importlib.metadata.version
    assert FeatureStore(tower).folder == folder
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == library else version(name))
    assert FeatureStore(tower).folder != folder


def test_what_others_add_and_delete_is_seen(tower: VisionTower) -> None:
    store, other = FeatureStore(tower), FeatureStore(tower)
    photos = digests(*range(40))
    store.add({photo: of(tower, 0) for photo in photos[:20]})
    other.add({photo: of(tower, 1) for photo in photos[10:30]})
    store.add({photo: of(tower, 2) for photo in photos[25:]})
    assert list(store.rows()) == list(other.rows()) == photos
    read = store.reader({photo: photo for photo in photos})
    assert [float(read(photo)[0, 0]) for photo in photos] == [0.0] * 20 + [1.0] * 10 + [2.0] * 10
    shutil.rmtree(store.folder)
    assert store.rows() == {}
    other.add({photos[5]: of(tower, 5)})
    assert store.rows() == {photos[5]: 0}
