"""Variants that `mmtune reproduce` compares, and presets of models and data."""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
# share of rows without an image (arXiv 2411.10557, section 4: MLAN, MLAN_v for Llama 2 and for Vicuna, the baseline)
VARIANTS = {"language-only": 1.0, "88-12": 0.88, "50-50": 0.5, "visual-only": 0.0}
BASELINE = "visual-only"  # the variant that the others' costs are compared with


@dataclass(frozen=True)
class Preset:
    """Preset of a reproduction: base model, text and visual data, and evaluation suite.

    Attributes:
        align: config of the base model's alignment.
        tune: config of every variant.
        captions: files for the alignment of the base model; empty where its config names them.
        text: files of rows without images.
        visual: files of rows with images.
        objects: file of images and the objects in them; questions generated from it are visual rows, too.
        image_root: folder of the images.
        samples: number of training rows of each variant.
        align_steps: optimizer steps of the alignment; None for the number in its config.
        suite: evaluation suite.
        limit: maximum number of rows of each evaluation set; None for all.
        below_data_root: whether the paths of files and images are relative to --data-root.
    """

    align: str
    tune: str
    text: tuple[str, ...]
    visual: tuple[str, ...]
    image_root: str
    samples: int
    captions: tuple[str, ...] = ()
    objects: str | None = None
    align_steps: int | None = None
    suite: str = "mlan9"
    limit: int | None = None
    below_data_root: bool = False


def _mlan(model: str) -> Preset:
    """Return the preset of the paper's recipe; its 40,000 rows are as many as the data has with an image."""
    return Preset(
        align=f"{model}_align",
        tune=f"{model}_lora",
        text=("data/MLAN/MLAN_80k.json",),
        visual=("data/MLAN/MLAN_v_50l_80k.json",),
        image_root="data/MLAN/images_mlan_v",
        samples=40_000,
    )


PRESETS = {
    "tiny": Preset(
        align="reproduce_tiny_align",
        tune="reproduce_tiny",
        captions=("visual/coco_captions_llava.json",),
        text=("text/p3_t0.jsonl", "text/gsm8k_2000.jsonl"),
        visual=("visual/coco_captions_llava.json",),
        objects="visual/coco_objects.jsonl",
        image_root="visual/images",
        samples=480,
        align_steps=120,
        suite="local9",
        limit=100,
        below_data_root=True,
    ),
    "llama2-7b": _mlan("llama2_7b"),
    "vicuna-7b": _mlan("vicuna_7b"),
}
