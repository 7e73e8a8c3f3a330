"""Frozen vision towers from open_clip and timm behind one interface."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from mmtune.common.archives import is_compressed
from mmtune.common.errors import UserError, did_you_mean, reason
from mmtune.common.files import PACKAGE_SCHEME, locate
from mmtune.common.hub import go_offline_if_unreachable
from mmtune.data.image_files import MOST_PIXELS
from mmtune.models.interop import clip
from mmtune.models.interop.image_processor import read_processor
from mmtune.models.spec import ImageFit, VisionOptions


@dataclass(frozen=True)
class TowerShape:
    """Shapes of a tower's input and output, known without its weights.

    Attributes:
        num_tokens: number of features per image.
        width: number of channels of a feature.
        size: height and width of the input, in pixels.
        mean: mean of each input channel, in 0..1.
        std: standard deviation of each input channel.
    """

    num_tokens: int
    width: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class VisionTower(nn.Module):
    """Frozen vision tower: images [images, 3, size, size] to features [images, num_tokens, width].

    Attributes:
        images_encoded: number of images encoded so far. It stays 0 in a text-only run, and the ledger shows it.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, trunk: nn.Module, options: VisionOptions, shape: TowerShape) -> None:
        super().__init__()
        # channels last: a convolutional tower took half the time for a batch of photos on a CPU
        self.trunk: nn.Module = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
        self.options, self.shape = options, shape
        self.register_buffer("feature_mean", torch.zeros(shape.width))
        self.register_buffer("feature_std", torch.ones(shape.width))
        self.images_encoded = 0
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VisionTower:
        """Stay in evaluation mode: a frozen tower's normalization layers and dropout never change."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images, and standardize their features."""
        return self.standardised(self.encode(pixels))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the features [images, num_tokens, width] of images, not standardized.

        They are computed in the type of the tower's weights, also under autocast, so that stored features and those of
        a step agree.
        """
        self.images_encoded += len(pixels)
        weight, options = next(self.trunk.parameters()), self.options
        pixels = pixels.to(weight.dtype, memory_format=torch.channels_last)
        with _exact(weight.device):
            return _tokens(*_intermediates(self.trunk, pixels, options.blocks, options.class_token), options.grid)

    def standardised(self, features: torch.Tensor) -> torch.Tensor:
        """Standardize features [images, num_tokens, width] for the projector."""
        # contiguous: else torch multiplies trained and frozen projectors in different orders, which rounds differently
        return ((features - self.feature_mean) / self.feature_std).contiguous()

    @torch.no_grad()
    def measure_standardisation(self, features: torch.Tensor) -> None:
        """Set the mean and deviation for standardization, from features [images, num_tokens, width] of `encode`."""
        channels = features.flatten(0, 1).float()
        self.feature_mean.copy_(channels.mean(dim=0))
        self.feature_std.copy_(channels.std(dim=0).clamp_min(1e-3))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Convert a decoded image to float32 [3, size, size], made square and normalized."""
        shape = self.shape
        square = _make_square(image, self.options.fit, shape.mean, shape.size)
        values = torch.from_numpy(np.asarray(square, dtype=np.float32)) / 255
        return ((values - torch.tensor(shape.mean)) / torch.tensor(shape.std)).permute(2, 0, 1).contiguous()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Compute in the type of the weights: without autocast, and without the TF32 of cuDNN's convolutions."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext():
            yield
    finally:
        cudnn.allow_tf32 = before


def tower_shape(options: VisionOptions) -> TowerShape:
    """Return the shape of a tower, from its architecture alone.

    Raises:
        UserError: no such tower or block, or blocks of several resolutions without a grid.
    """
    if options.grid is not None and options.grid < 1:
        raise UserError(f"--model.vision.grid {options.grid}: must be at least 1")
    if not options.blocks:
        raise UserError("--model.vision.blocks: names no block; -2 is the last but one")
    # the files of a CLIP folder may change, so their shape is not cached; the other towers are code
    find = _tower_shape.__wrapped__ if options.tower.startswith("clip:") else _tower_shape
    return find(options.tower, tuple(options.blocks), options.grid, options.class_token)


def preprocessing(options: VisionOptions, shape: TowerShape) -> Callable[[Image.Image], torch.Tensor]:
    """Return a tower's `preprocess` without its weights, which it does not need, to send it to other processes."""
    return VisionTower(nn.Identity(), options, shape).preprocess


@functools.lru_cache(maxsize=16)
def _tower_shape(tower: str, blocks: tuple[int, ...], grid: int | None, class_token: bool) -> TowerShape:
    trunk, settings = _build_trunk(tower, meta=True)
    size = settings["size"]
    try:
        with torch.no_grad():
            pixels = torch.empty(1, 3, size, size, device="meta")
            maps, classes = _intermediates(trunk, pixels, blocks, class_token)
    except (AssertionError, IndexError, ValueError) as error:
        raise UserError(f"--model.vision.blocks {list(blocks)}: {tower} has no such block ({error})") from None
    if grid is None and len({m.shape[-2:] for m in maps}) > 1:
        raise UserError(
            f"--model.vision.blocks {list(blocks)}: these blocks of {tower} differ in resolution; "
            "give --model.vision.grid to pool them to one"
        )
    tokens = _tokens(maps, classes, grid)
    return TowerShape(tokens.shape[1], tokens.shape[2], size, settings["mean"], settings["std"])


def build_tower(options: VisionOptions, *, meta: bool = False) -> VisionTower:
    """Build a tower with its weights, or without them on the meta device.

    Raises:
        UserError: the tower is unknown, or its weights are missing.
    """
    shape = tower_shape(options)
    with torch.device("meta" if meta else "cpu"):
        if meta:
            return VisionTower(_build_trunk(options.tower, meta=True)[0], options, shape)
        trunk, _ = _build_trunk(options.tower, weights=options.weights)
        return VisionTower(trunk, options, shape)


def _build_trunk(tower: str, *, weights: str = "random", meta: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    library, _, name = tower.partition(":")
    builders = {"open_clip": _open_clip_trunk, "timm": _timm_trunk, "clip": _clip_trunk}
    if library not in builders or not name:
        raise UserError(f"--model.vision.tower {tower}: write open_clip:NAME or timm:NAME, or clip:REFERENCE")
    with _quiet():
        return builders[library](name, weights, meta)


def _open_clip_trunk(name: str, weights: str, meta: bool) -> tuple[nn.Module, dict[str, Any]]:
    import open_clip

    if name not in open_clip.list_models():
        raise UserError(f"--model.vision.tower open_clip:{name}: {did_you_mean(name, open_clip.list_models())}")
    options: dict[str, Any] = {"device": "meta" if meta else "cpu"}
    if meta or weights == "random":
        with torch.device(options["device"]):  # open_clip itself moves a model that it has drawn weights for
            model = open_clip.create_model(name, load_weights=False, **options)
    else:
        file = _weights_file(weights)
        tags = open_clip.list_pretrained_tags_by_model(name)
        if file is None and weights not in tags:
            raise UserError(
                f"--model.vision.weights {weights}: open_clip:{name} has the tags {', '.join(tags) or '(none)'}"
            )
        if file is None:
            go_offline_if_unreachable()
        try:
            model = open_clip.create_model(name, pretrained=file or weights, **options)
        except Exception as error:  # torch, safetensors and open_clip raise many kinds for a damaged file
            if file is not None:
                raise UserError(f"--model.vision.weights {file}: cannot be read: {reason(error)}") from None
            if not isinstance(error, OSError | RuntimeError):
                raise
            source = open_clip.get_pretrained_cfg(name, weights).get("hf_hub", "").rstrip("/") or name
            raise _no_weights(f"open_clip:{name}", weights, source, error) from None
    settings = model.visual.preprocess_cfg
    size = settings["size"]
    return model.visual, {
        "size": size[0] if isinstance(size, tuple | list) else size,
        "mean": tuple(settings["mean"]),
        "std": tuple(settings["std"]),
    }


def _timm_trunk(name: str, weights: str, meta: bool) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"--model.vision.tower timm:{name}: {did_you_mean(name, timm.list_models())}")
    if weights == "pretrained" and not meta:
        go_offline_if_unreachable()
    try:
        with torch.device("meta" if meta else "cpu"):
            model = timm.create_model(name, pretrained=weights == "pretrained" and not meta)
    except (OSError, RuntimeError) as error:
        raise _no_weights(f"timm:{name}", weights, f"timm/{name}", error) from None
    if not meta and weights not in ("pretrained", "random"):
        file = _weights_file(weights)
        if file is None:
            raise UserError(f"--model.vision.weights {weights}: no such file; timm towers take `pretrained` or a file")
        _load_trunk(model, file)
    settings = model.pretrained_cfg
    return model, {
        "size": settings["input_size"][-1],
        "mean": tuple(settings["mean"]),
        "std": tuple(settings["std"]),
    }


def _clip_trunk(reference: str, weights: str, meta: bool) -> tuple[nn.Module, dict[str, Any]]:
    config = clip.read_vision_config(reference)
    with torch.device("meta" if meta else "cpu"):
        trunk = clip.build_trunk(config)
    if not meta and weights != "random":
        clip.load_trunk(trunk, reference if weights == "pretrained" else weights)
    return trunk, read_processor(reference, config.image_size)[1]


def _weights_file(weights: str) -> str | None:
    path = locate(weights)
    if path.is_file():
        return str(path)
    if weights.startswith(PACKAGE_SCHEME) or path.suffix:
        raise UserError(f"--model.vision.weights {weights}: no such file")
    return None


def _load_trunk(trunk: nn.Module, file: str) -> None:
    """Load a file of weights by name, or in order if its names are those of another port and every shape agrees."""
    import safetensors.torch

    try:
        if file.endswith(".safetensors"):
            state = safetensors.torch.load_file(file)
        else:
            if is_compressed(Path(file)):
                raise ValueError("it is compressed, which weights are not")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"--model.vision.weights {file}: cannot be read: {str(error).splitlines()[0]}") from None
    own = trunk.state_dict()
    if set(state) != set(own):
        same = len(state) == len(own) and all(
            a.shape == b.shape for a, b in zip(state.values(), own.values(), strict=True)
        )
        if not same:
            raise UserError(f"--model.vision.weights {file}: holds the weights of another architecture")
        state = dict(zip(own, state.values(), strict=True))
    trunk.load_state_dict(state)


def _intermediates(
    trunk: Any, pixels: torch.Tensor, blocks: Sequence[int], class_token: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return feature maps [images, channels, height, width] and class tokens [images, 1, channels] of the given blocks.

    Raises:
        ValueError: class tokens are requested, but the tower has none.
    """
    wanted = {"output_extra_tokens": True} if class_token and hasattr(trunk, "class_embedding") else {}
    maps = trunk.forward_intermediates(pixels, indices=list(blocks), intermediates_only=True, stop_early=True, **wanted)
    if not isinstance(maps, dict):
        maps = {"image_intermediates": maps}
    if class_token and "image_intermediates_prefix" not in maps:
        raise ValueError("only towers of CLIP's kind give a class token; leave out --model.vision.class_token")
    return list(maps["image_intermediates"]), list(maps.get("image_intermediates_prefix", ()))


def _tokens(maps: Sequence[torch.Tensor], classes: Sequence[torch.Tensor], grid: int | None) -> torch.Tensor:
    """Return tokens [images, tokens, channels]: class tokens first, then patches row by row.

    The channels of several maps are concatenated.
    """
    pooled = [m if grid is None else _pool(m, grid) for m in maps]
    patches = torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)
    return torch.cat([torch.cat(list(classes), dim=2), patches], dim=1) if classes else patches


def _pool(feature_map: torch.Tensor, grid: int) -> torch.Tensor:
    if feature_map.is_meta:
        return feature_map.new_empty(*feature_map.shape[:2], grid, grid)
    return adaptive_avg_pool2d(feature_map, grid)


def _make_square(image: Image.Image, fit: ImageFit, mean: Sequence[float], size: int) -> Image.Image:
    """Return the image as a square of `size` pixels a side."""
    width, height = image.size
    if fit == "crop" and width != height:
        # the short side first, then the centre, as CLIP's own preprocessing goes
        short = min(width, height)
        if size * size * max(width, height) // short > MOST_PIXELS:  # so long that nearly all of it would be cut away
            left, top = (width - short) // 2, (height - short) // 2
            return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
        width, height = (size * width // short, size * height // short)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + size, top + size))
    if fit == "pad" and width != height:
        side = max(width, height)
        if side * side > MOST_PIXELS:  # the square would be a hundred times as large as the image
            width, height = (max(1, size * length // side) for length in (width, height))
            image, side = image.resize((width, height), Image.Resampling.BICUBIC), size
        red, green, blue = (int(255 * channel) for channel in mean)
        canvas = Image.new("RGB", (side, side), (red, green, blue))
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image = canvas
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _no_weights(tower: str, weights: str, hub_id: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"--model.vision.weights {weights}: the weights of {tower} are not on this machine and cannot be downloaded; "
        f"`hf download {hub_id}` fetches them where there is a network ({reason})"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip, which warns through the root logger about random weights even if they are intended."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
