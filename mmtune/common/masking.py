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
# who an address is asked as: a name, or a name, a colon and all up to the last @; a port is no password
_USER = re.compile(r"(?<=://)(?:[^\s/?#:@]*:(?!\d+(?:[/?#\s]|$))[^\s'\"]*|[^\s/?#:@]+)@")
_PARAMETER = re.compile(r"([?&;#])([\w.-]+)=([^\s&;#'\"]+)")
_SECRET_PARAMETER = re.compile(rf"{_SECRET}|auth|signature|credential|^(?:sig|key|code)$", re.IGNORECASE)
_SHORTEST = 4  # of a secret that is looked for in other text: a shorter one is found everywhere
_known: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret: `api_key`, `password`, `HF_TOKEN`."""
    return _KEY.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)) is not None


def masked(value: Any) -> Any:
    """The same settings without secrets: the values of secret keys, and credentials in addresses."""
    if isinstance(value, Mapping):
        return {key: _hidden(inner) if is_secret(str(key)) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(masked, value))
    return masked_address(value) if isinstance(value, str) else value


def masked_address(text: str) -> str:
    """A text without the user names, passwords, tokens and signatures of the addresses in it."""
    return _PARAMETER.sub(_masked_parameter, _USER.sub(f"{MASK}@", text)) if "://" in text else text


def _masked_parameter(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={MASK if _SECRET_PARAMETER.search(name) else value}"


def masked_text(text: str) -> str:
    """A text to be shown, without credentials in addresses and without the secrets that `remember` was given."""
    text = masked_address(text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def remember(settings: Any) -> None:
    """Keep the secrets of settings in mind, so that `masked_text` finds them wherever they are quoted."""
    _known.update(secret for secret in _secrets(settings) if len(secret) >= _SHORTEST and secret != MASK)


def remember_arguments(words: list[str]) -> None:
    """Keep in mind the secrets that a command line gives, as `--flag.api_key=SECRET` or with a blank between."""
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
