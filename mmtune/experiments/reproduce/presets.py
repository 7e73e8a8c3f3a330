"""What `mmtune reproduce` compares, and the models and data it can compare it on."""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
# the share of rows without a photo (arXiv 2411.10557, section 4: MLAN, MLAN_v for Llama 2 and for Vicuna, the baseline)
VARIANTS = {"language-only": 1.0, "88-12": 0.88, "50-50": 0.5, "visual-only": 0.0}
BASELINE = "visual-only"  # what the others are cheaper than, or not


@dataclass(frozen=True)
class Preset:
    """A base model, the data of both kinds, and what is asked afterwards.

    Attributes:
        align: the config that makes the base model.
        tune: the config of every variant.
        captions: files that the base is aligned on; none where its config names them.
        text: files of rows without photos.
        visual: files of rows with photos.
        objects: a file of photos and what is to be seen in them; questions made of it are visual rows too.
        image_root: the folder of the photos.
        samples: rows each variant is trained on.
        align_steps: steps of the alignment; None takes what its config says.
        suite: what is asked.
        limit: rows of each set; None for all.
        below_data_root: whether the files' paths are relative to --data-root.
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
    """The recipe's data holds 40,000 rows with a photo; that many rows can be had of either kind."""
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
