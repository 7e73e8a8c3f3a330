"""A small world to attack: a model of two blocks, as a folder and as GGUF; rows, photos, sets, a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tiny_models import save_byte_llama, save_gguf, save_tower

from mmtune.experiments.reproduce.presets import Preset

TEXT_ROWS, PHOTOS, TALES = 60, 72, 300  # photos: more than go through the tower at once; tales: several chunks


def build_world(folder: Path) -> None:
    """Fill a folder; everything in it is the same every time."""
    save_byte_llama(folder / "llama")
    save_tower(folder / "tower.pth")
    save_gguf(folder / "tiny.gguf")
    rows = [{"prompt": f"What comes after {n}?", "completion": f"It is {n + 1}."} for n in range(TEXT_ROWS)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _save_photos(folder / "images", seed=1)
    _save_photos(folder / "unseen", seed=2)
    _save_visual(folder)
    _save_sets(folder)
    _save_configs(folder)


def comparison(folder: Path) -> Preset:
    """What `mmtune reproduce` is to compare on this world in place of its own preset `tiny`."""
    return Preset(
        align=str(folder / "align.yaml"),
        tune=str(folder / "tune.yaml"),
        captions=("visual.json",),
        text=("text.jsonl",),
        visual=("visual.json",),
        objects="objects.jsonl",
        image_root="images",
        samples=16,
        align_steps=4,
        suite=str(folder / "both.yaml"),
        limit=8,
        below_data_root=True,
    )


def _save_photos(folder: Path, *, seed: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(PHOTOS):
        Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def _save_visual(folder: Path) -> None:
    def turns(number: int) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>\nSay it."}, {"from": "gpt", "value": f"View {number}."}]

    rows = [{"id": str(n), "image": f"{n}.png", "conversations": turns(n)} for n in range(PHOTOS)]
    (folder / "visual.json").write_text(json.dumps(rows))
    things = ("dog", "cup", "tie", "bus", "bed")
    seen = [{"image": f"{n}.png", "objects": [things[n % 5], things[(n + 1) % 5]]} for n in range(6)]
    (folder / "objects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))


def _save_sets(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(2)
    tales = [{"question": f"Tale {n}: is it {random.integers(1000)} that you mean?"} for n in range(TALES)]
    photos = [(folder / "unseen" / f"{n}.png").read_bytes() for n in range(PHOTOS)]
    sights = [{"question": "Is it big?", "image": {"bytes": p, "path": "x.png"}} for p in photos]
    common: dict[str, Any] = {
        "version": 1,
        "prompt": "{{ question }}",
        "target": "yes",
        "answer": "yes_no",
        "max_tokens": 4,
        "metrics": ["accuracy"],
    }
    sets = {"tales": (tales, {"modality": "language"}), "sights": (sights, {"modality": "vision", "images": ["image"]})}
    for name, (rows, own) in sets.items():
        task = {"name": name, **common, **own, "dataset": {"path": f"own/{name}", "split": "test"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
        file = folder / "hub" / "own" / name / "default" / "test.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    suite = {"name": "both", "description": "both", "tasks": [str(folder / f"{name}.yaml") for name in sets]}
    (folder / "both.yaml").write_text(yaml.safe_dump(suite))


def _save_configs(folder: Path) -> None:
    vision = {"tower": "timm:test_vit", "weights": str(folder / "tower.pth"), "grid": 2}
    model = {"language": str(folder / "llama"), "template": "chatml", "vision": vision}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "logger": False}
    data = {"max_length": 256, "pack_tokens": 2048, "pack_rows": 4}
    align = {"model": {"stage": "align", **model}, "data": data, "trainer": trainer, "checkpoint_every": 2}
    tune = {
        "model": {"stage": "tune", "base": "nowhere", "lora": {"r": 4, "alpha": 8}},
        "data": data,
        "trainer": trainer,
        "checkpoint_every": 2,
    }
    (folder / "align.yaml").write_text(yaml.safe_dump(align))
    (folder / "tune.yaml").write_text(yaml.safe_dump(tune))
