"""Pictures of every depth and kind of color, in 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: numbers of more than 8 bits scaled, and what is transparent on white, as people see it.

    Raises:
        ValueError: it has numbers of 32 bits that are negative, above 65,535 or no numbers.
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
    """The upper byte of each number, as Pillow takes it of 16-bit colors."""
    values = np.asarray(image)
    grays = (values >> 8).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grays[values == clear] = 255
    return Image.fromarray(grays).convert("RGB")


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Bytes of numbers whose range no file tells: up to 1 (floats), 255 or 65,535, the first that holds them all."""
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest < 2**16):  # also where one is no number
        raise ValueError(
            f"its values go from {lowest:g} to {highest:g}, and only those from 0 to 1, 255 or 65,535 are known; "
            "save it with 8 bits"
        )
    if values.dtype.kind == "f" and highest <= 1:
        values = values * 255
    elif highest > 255:
        return (values // 256).astype(np.uint8)
    return np.rint(values).astype(np.uint8)
