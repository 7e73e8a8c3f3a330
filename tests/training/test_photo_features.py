"""Training reads what the tower said of its photos before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fit = Callable[..., int]
Read = Callable[[Path, str], Any]


@pytest.fixture
def flags(visual_rows: Path, vision_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [f"--data.train.visual=[{visual_rows}]", f"--data.validation=[{visual_rows}]", "--data.pack_rows=3"]
    return ["--model.stage=align", "--model.vision.standardise=true", "--trainer.max_epochs=2", *rows, *vision_flags]


def test_stored_features_train_as_the_tower_does(
    fit: Fit,
    flags: list[str],
    tmp_path: Path,
    read_run: Read,
    weights_of: Callable[[Path], Any],
    same_weights: Callable[[Path, Path], None],
) -> None:
    assert fit(tmp_path / "first", *flags) == 0
    assert fit(tmp_path / "again", *flags) == 0
    assert fit(tmp_path / "without", *flags, "--model.stored_features_gib=0") == 0
    assert fit(tmp_path / "workers", *flags, "--data.num_workers=2") == 0
    passes = {name: read_run(tmp_path / name, "ledger.json")["tower_passes"] for name in ("first", "again", "workers")}
    assert passes == {"first": 6, "again": 0, "workers": 0}
    assert read_run(tmp_path / "first", "ledger.json")["flops"]["tower"] > 0
    assert read_run(tmp_path / "without", "ledger.json")["tower_passes"] > 12
    same_weights(tmp_path / "first", tmp_path / "again")
    same_weights(tmp_path / "first", tmp_path / "workers")
    stored, computed = weights_of(tmp_path / "first"), weights_of(tmp_path / "without")
    # photos in batches of another size are rounded in another way, and AdamW's first steps magnify that
    assert all(float((stored[name] - computed[name]).abs().max()) < 1e-3 for name in computed)


def test_what_cannot_be_stored_is_computed_in_every_step(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "small", *flags, "--model.stored_features_gib=1e-9") == 0
    assert "--model.stored_features_gib 1e-09 allows no more" in capsys.readouterr().err
    (tmp_path / "cache").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "cache" / "features", ignore_errors=True)
    (tmp_path / "cache" / "features").write_text("in the way")
    assert fit(tmp_path / "blocked", *flags) == 0
    assert "the photos' features are not stored" in capsys.readouterr().err.lower()
    for name in ("small", "blocked"):
        assert read_run(tmp_path / name, "ledger.json")["tower_passes"] > 12


def test_a_photo_that_cannot_be_read_is_named(
    fit: Fit, flags: list[str], visual_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(visual_rows.parent, rows)
    given = [flag.replace(str(visual_rows), str(rows / visual_rows.name)) for flag in flags]
    for content, message in ((None, "does not exist"), (b"no picture", "not a picture")):
        (rows / "2.png").unlink()
        if content is not None:
            (rows / "2.png").write_bytes(content)
        assert fit(tmp_path / "run", *given, "--data.check_images=false") == 2
        error = capsys.readouterr().err
        assert "visual.json, row 3" in error
        assert message in error
        (rows / "2.png").touch()
