"""Conversion of images of every bit depth and color mode to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB: values of more than 8 bits are scaled, transparent pixels are laid on white.

    Raises:
        ValueError: it has values of 32 bits that are negative, above 65,535 or not a number.
    """
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image)
    if image.mode in ("I", "F"):
        image = Image.fromarray(_bytes_of(np.asarray(image)))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grays by their upper byte, as Pillow converts 16-bit colors; a transparent value becomes white."""
    values = np.asarray(image)
    grays = (values >> 8).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grays[values == clear] = 255
    return Image.fromarray(grays).convert("RGB")


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Scale values to bytes from the smallest range that holds them: up to 1 (floats), 255 or 65,535.

    The file does not state the range.

    Raises:
        ValueError: a value is negative, above 65,535 or not a number.
    """
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest < 2**16):  # also raised for NaN
        raise ValueError(
            f"its values go from {lowest:g} to {highest:g}, and only those from 0 to 1, 255 or 65,535 are known; "
            "save it with 8 bits"
        )
    if values.dtype.kind == "f" and highest <= 1:
        values = values * 255
    elif highest > 255:
        return (values // 256).astype(np.uint8)
    return np.rint(values).astype(np.uint8)
