"""What the chat page sends, read with suspicion."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import threading
from dataclasses import dataclass, replace
from typing import Any

from anyio import to_thread
from PIL import Image, UnidentifiedImageError
from starlette.requests import ClientDisconnect, Request

from mmtune.apps.chat.limits import Limits
from mmtune.common.errors import UserError
from mmtune.data.image_files import FORMATS, FormatError, open_image
from mmtune.data.images import open_photo
from mmtune.interfaces import SamplingParams

_KEPT_SIDE = 2048  # larger photos are kept in memory smaller; towers see some hundred pixels
_SECONDS = 30  # for a message to arrive
_decoding = threading.Lock()  # one photo at a time: a large one takes 150 MB while it is decoded
_NUMBERS = {"temperature": float, "top_p": float, "max_tokens": int}


class BadRequestError(Exception):
    """A message that is not taken, with the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Message:
    """What is said.

    Attributes:
        text: by the user.
        photos: shown with it, at most one.
        sampling: how to answer.
    """

    text: str
    photos: list[Image.Image]
    sampling: SamplingParams


async def read_message(request: Request, limits: Limits, default: SamplingParams) -> Message:
    """Read `{"text": …, "photo": base64 or null, "sampling": {…}}`.

    Raises:
        BadRequestError: it is too large, too slow, or not that.
    """
    body = await _body(request, limits.body)
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the message is not JSON") from None
    if not isinstance(sent, dict) or not isinstance(sent.get("text"), str):
        raise BadRequestError(400, "the message has no text")
    if len(sent["text"]) > limits.text:
        raise BadRequestError(413, f"a message has at most {limits.text:,} characters")
    sampling = _sampling(sent.get("sampling", {}), limits, default)
    photos = []
    if (photo := sent.get("photo")) is not None:
        photos = [await to_thread.run_sync(_photo, photo, limits)]
    return Message(sent["text"], photos, sampling)


async def _body(request: Request, most: int) -> bytes:
    too_large = BadRequestError(413, f"a message has at most {most / 1e6:.0f} MB")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise BadRequestError(408, f"the message did not arrive within {_SECONDS} seconds") from None
    except ClientDisconnect:
        raise BadRequestError(400, "the message did not arrive") from None
    return bytes(body)


def _sampling(sent: Any, limits: Limits, default: SamplingParams) -> SamplingParams:
    if not isinstance(sent, dict):
        raise BadRequestError(400, "sampling: not an object")
    values: dict[str, Any] = {}
    for name, kind in _NUMBERS.items():
        value = sent.get(name, getattr(default, name))
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise BadRequestError(400, f"{name}: not a number")
        values[name] = value
    seed = sent.get("seed", default.seed)
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise BadRequestError(400, "seed: not a whole number")
    if values["max_tokens"] > limits.tokens:
        raise BadRequestError(400, f"max_tokens: an answer has at most {limits.tokens:,}")
    try:
        return replace(default, **values, seed=seed)
    except UserError as error:
        raise BadRequestError(400, str(error)) from None


def _photo(sent: Any, limits: Limits) -> Image.Image:
    """Decode a photo, once its size is known to be harmless."""
    if not isinstance(sent, str):
        raise BadRequestError(400, "the photo is not base64")
    try:
        data = base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequestError(400, "the photo is not base64") from None
    if len(data) > limits.photo_bytes:
        raise BadRequestError(413, f"a photo has at most {limits.photo_bytes / 1e6:.0f} MB")
    try:
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
    except (FormatError, UnidentifiedImageError):
        raise BadRequestError(400, f"the photo is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise BadRequestError(400, "the photo cannot be decoded, or is far too large") from None
    if width * height > limits.photo_pixels:
        raise BadRequestError(413, f"a photo has at most {limits.photo_pixels / 1e6:.0f} megapixels")
    with _decoding:
        try:
            photo = open_photo(data, "the message")
        except UserError as error:
            raise BadRequestError(400, str(error)) from None
        photo.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
        return photo
