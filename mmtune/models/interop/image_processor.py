"""Settings of transformers' image processors, which convert an image to a tower's input."""

from __future__ import annotations

from typing import Any

from mmtune.common.errors import UserError
from mmtune.models.interop.weights import read_settings
from mmtune.models.spec import ImageFit

_FILE = "preprocessor_config.json"
_BICUBIC = 3
# defaults of CLIPImageProcessor, for the settings that a file leaves out
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MUST = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC}


def read_processor(reference: str, image_size: int) -> tuple[ImageFit, dict[str, Any]]:
    """Read how a folder's image processor makes an image square, and the settings of the tower's input.

    Args:
        reference: folder or hub id.
        image_size: input size of the tower, which the processor must produce.

    Returns:
        The fit; and `size`, `mean` and `std` of the tower's input.

    Raises:
        UserError: the processor has a setting that is not supported here.
    """
    settings = read_settings(reference, _FILE)
    if settings is None:  # transformers 5 keeps it in the processor's own file
        settings = (read_settings(reference, "processor_config.json") or {}).get("image_processor") or {}
    where = f"{reference}: {_FILE}"
    for key, expected in _MUST.items():
        if settings.get(key, expected) != expected:
            raise UserError(f"{where}: {key}: expected {expected}, found {settings[key]}")
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(f"{where}: rescale_factor: expected 1/255, found {settings['rescale_factor']}")
    size = settings.get("size", image_size)
    crop = settings.get("crop_size", image_size) if settings.get("do_center_crop", True) else image_size
    squashed = isinstance(size, dict) and "height" in size
    edges = {edge for value in (size, crop) for edge in (value.values() if isinstance(value, dict) else [value])}
    if edges != {image_size}:
        raise UserError(
            f"{where}: expected photos of {image_size} pixels for the tower, found size {size}, crop {crop}"
        )
    if not squashed and not settings.get("do_center_crop", True) and not settings.get("do_pad"):
        raise UserError(f"{where}: expected photos to become square, found neither do_center_crop nor do_pad")
    fit: ImageFit = "pad" if settings.get("do_pad") else "squash" if squashed else "crop"
    return fit, {
        "size": image_size,
        "mean": tuple(settings.get("image_mean", _MEAN)),
        "std": tuple(settings.get("image_std", _STD)),
    }


def processor_settings(
    fit: ImageFit, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> dict[str, Any]:
    """Return the settings of the equivalent image processor: CLIP's, or LLaVA's if images are padded."""
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "LlavaImageProcessor" if fit == "pad" else "CLIPImageProcessor",
        **({"do_pad": True} if fit == "pad" else {}),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if fit == "squash" else {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_center_crop": fit != "squash",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
