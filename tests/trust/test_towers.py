"""What a config says of the vision tower names one that the libraries know, and runs nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.common.errors import UserError
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import build_tower

SMALL = {"open_clip": "open_clip:ViT-S-32-alt", "timm": "timm:test_vit"}


class Runs:
    """A pickle of it runs code when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("library", ["open_clip", "timm"])
@pytest.mark.parametrize(
    "name", ["hf-hub:strange/model", "hf_hub:strange/model", "local-dir:FOLDER", "FOLDER", "http://127.0.0.1:9/model",
             "hf-hub:strange/test_vit.x"],
)  # fmt: skip
def test_a_tower_is_known_to_its_library(library: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "model_cfg": {}}')
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}, "preprocess_cfg": {}}')
    with pytest.raises(UserError, match=f"--model.vision.tower {library}:"):
        build_tower(VisionOptions(tower=f"{library}:{name.replace('FOLDER', str(tmp_path))}", weights="pretrained"))


@pytest.mark.parametrize("tower", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("weights", ["http://127.0.0.1:9/w.pt", "hf-hub:strange/model", "FOLDER/none.npz", "strange"])
def test_weights_are_a_file_or_known_to_the_library(tower: str, weights: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.vision\.weights "):
        build_tower(VisionOptions(tower=tower, weights=weights.replace("FOLDER", str(tmp_path))))


@pytest.mark.parametrize("tower", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.pth", "w.safetensors", "w.npz", "w"])
def test_weights_that_are_a_pickle_with_code_are_not_run(tower: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    with file.open("wb") as stream:
        torch.save({"visual.x": Runs(tmp_path / "ran")}, stream)
    with pytest.raises(UserError, match=rf"--model\.vision\.weights .*{name}"):
        build_tower(VisionOptions(tower=tower, weights=str(file)))
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    assert (tmp_path / "ran").exists()  # it does run where it may
