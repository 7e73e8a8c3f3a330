"""Secrets in settings and addresses, masked before they are written, sent or shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "<masked>"
_SECRET = (
    r"(?:api|access|account|private|secret|signing|encryption)[_-]?key(?:[_-]?id)?|secret|token|password|passwd|pwd|"
    r"passphrase|credentials?|authorization|bearer|cookie"
)
_KEY = re.compile(rf"(?:.*[_.\- ])?(?:{_SECRET}|auth|[a-z]*(?:password|secret|apikey))", re.IGNORECASE)
# user part of an address: a name, or a name, a colon and everything up to the last @; a port is no password
_USER = re.compile(r"(?<=://)(?:[^\s/?#:@]*:(?!\d+(?:[/?#\s]|$))[^\s'\"]*|[^\s/?#:@]+)@")
_PARAMETER = re.compile(r"([?&;#])([\w.-]+)=([^\s&;#'\"]+)")
_SECRET_PARAMETER = re.compile(rf"{_SECRET}|auth|signature|credential|^(?:sig|key|code)$", re.IGNORECASE)
_SHORTEST = 4  # of a secret that is looked for in other text: a shorter one is found everywhere
_known: set[str] = set()


def is_secret(key: str) -> bool:
    """Return whether a setting of this name holds a secret: `api_key`, `password`, `HF_TOKEN`."""
    return _KEY.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)) is not None


def masked(value: Any) -> Any:
    """Return the settings with secrets masked: the values of secret keys, and credentials in addresses."""
    if isinstance(value, Mapping):
        return {key: _hidden(inner) if is_secret(str(key)) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(masked, value))
    return masked_address(value) if isinstance(value, str) else value


def masked_address(text: str) -> str:
    """Return a text with the user names, passwords, tokens and signatures of its addresses masked."""
    return _PARAMETER.sub(_masked_parameter, _USER.sub(f"{MASK}@", text)) if "://" in text else text


def _masked_parameter(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={MASK if _SECRET_PARAMETER.search(name) else value}"


def masked_text(text: str) -> str:
    """Return a text with credentials in addresses, and the secrets that `remember` stored, masked."""
    text = masked_address(text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def remember(settings: Any) -> None:
    """Store the secrets of settings, so that `masked_text` masks them in any text that quotes them."""
    _known.update(secret for secret in _secrets(settings) if len(secret) >= _SHORTEST and secret != MASK)


def remember_arguments(words: list[str]) -> None:
    """Store the secrets of a command line, given as `--flag.api_key=SECRET` or `--flag.api_key SECRET`."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            remember({flag.rpartition(".")[2].lstrip("-"): value if equals else after})


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_hidden, value))
    return MASK if isinstance(value, str) and value else value


def _secrets(value: Any, *, secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, secret=secret or is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(inner, secret=secret)
    elif secret and isinstance(value, str):
        yield value
