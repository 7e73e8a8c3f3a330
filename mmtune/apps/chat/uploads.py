"""Parsing and validation of the messages that the chat page sends."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from anyio import to_thread
from PIL import Image, UnidentifiedImageError
from starlette.requests import ClientDisconnect, Request

from mmtune.apps.chat.limits import Limits
from mmtune.common.errors import UserError
from mmtune.common.schema import validate
from mmtune.data.image_files import FORMATS, FormatError, open_image
from mmtune.data.images import load_image
from mmtune.interfaces import SamplingParams

_KEPT_SIDE = 2048  # pixels; larger images are downscaled, since vision towers read some hundred
_SECONDS = 30  # for a message to arrive
_decoding = threading.Lock()  # one image at a time, since decoding a large one takes 150 MB


class BadRequestError(Exception):
    """Error for a message that is refused, with the HTTP status of the response."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Message:
    """Message of a user: text, images and sampling options.

    Attributes:
        text: text of the user.
        photos: images of the message, at most one.
        sampling: sampling options of the answer.
    """

    text: str
    photos: list[Image.Image]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class _Sent:
    """JSON fields of a message; the image is in base64."""

    text: str
    photo: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Fields of `SamplingParams` that the page may set."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None


async def read_message(request: Request, limits: Limits, default: SamplingParams) -> Message:
    """Read a message of the form `{"text": …, "photo": base64 or null, "sampling": {…}}`.

    Args:
        request: the HTTP request.
        limits: limits on the size of the message and of the answer.
        default: sampling options for those that the message does not set.

    Raises:
        BadRequestError: the message is too large, arrives too slowly, or has another form, or its image cannot be
            decoded.
    """
    body = await _body(request, limits.body)
    try:
        sent = validate(_Sent, json.loads(body), "message", extra="ignore")
        sampling = _sampling(sent.sampling, default)
    except UserError as error:
        raise BadRequestError(400, str(error)) from None
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the message is not JSON") from None
    if len(sent.text) > limits.text:
        raise BadRequestError(413, f"a message has at most {limits.text:,} characters")
    if sampling.max_tokens > limits.tokens:
        raise BadRequestError(400, f"max_tokens: an answer has at most {limits.tokens:,}")
    photos = [] if sent.photo is None else [await to_thread.run_sync(_photo, sent.photo, limits)]
    return Message(sent.text, photos, sampling)


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


def _sampling(chosen: dict[str, Any], default: SamplingParams) -> SamplingParams:
    defaults = {one.name: getattr(default, one.name) for one in fields(_Chosen)}
    return replace(default, **asdict(validate(_Chosen, defaults | chosen, "sampling", extra="ignore")))


def _photo(sent: str, limits: Limits) -> Image.Image:
    """Decode an image after checks of its bytes, format and pixels, and downscale a large one.

    Raises:
        BadRequestError: the image is too large, or cannot be decoded.
    """
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
            photo = load_image(data, "the message")
        except UserError as error:
            raise BadRequestError(400, str(error)) from None
        photo.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
        return photo
