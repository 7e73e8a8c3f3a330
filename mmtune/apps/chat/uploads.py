"""What the chat page sends, read with suspicion."""

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

_KEPT_SIDE = 2048  # larger photos are kept in memory smaller; towers see some hundred pixels
_SECONDS = 30  # for a message to arrive
_decoding = threading.Lock()  # one photo at a time: a large one takes 150 MB while it is decoded


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


@dataclass(frozen=True, slots=True)
class _Sent:
    """The JSON of a message; the photo is in base64."""

    text: str
    photo: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What the page may choose of `SamplingParams`."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None


async def read_message(request: Request, limits: Limits, default: SamplingParams) -> Message:
    """Read `{"text": …, "photo": base64 or null, "sampling": {…}}`.

    Raises:
        BadRequestError: it is too large, too slow, or not that.
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
    """Decode a photo, once its size is known to be harmless."""
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
