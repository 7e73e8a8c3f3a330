"""Window of a model: the maximum number of tokens that it reads at once, and the handling of longer prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

from mmtune.common.errors import UserError, did_you_mean
from mmtune.data.conversation import IMAGE_PLACEHOLDER

PastWindow = Literal["refuse", "shorten"]
PAST_WINDOW: tuple[str, ...] = get_args(PastWindow)

_STRETCHED = ("linear", "dynamic", "yarn")  # kinds of RoPE whose factor multiplies the length trained on
_TOKENS_PER_BYTE = 11  # of UTF-8, at the very most: normal form KC makes 33 bytes of the 3 of U+FDFA


def window_of(config: Any) -> int | None:
    """Return the maximum number of tokens that a language model reads at once, its answer included.

    It is the config's `max_position_embeddings`, times the factor of a scaled RoPE if that config counts from the
    length trained on, as in vLLM. A sliding window is no limit, nor is the tokenizer's `model_max_length`.

    Args:
        config: transformers config; of a model with several parts, the text part is used.

    Returns:
        The number of tokens; None if there is no limit (ALiBi, recurrent layers alone).
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    attention = getattr(text, "attn_config", None)  # MPT's
    if getattr(text, "alibi", False) or getattr(attention, "alibi", False):
        return None
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in _STRETCHED:
        return most
    trained = rope.get("original_max_position_embeddings") or most
    return max(most, int(trained * float(rope.get("factor") or 1)))


def checked_past_window(value: str, name: str = "past_window") -> PastWindow:
    """Check the name of a rule for long prompts, and return it.

    Raises:
        UserError: there is no rule of that name.
    """
    if value in PAST_WINDOW:
        return cast(PastWindow, value)
    raise UserError(f"{name} {value!r}: {did_you_mean(str(value), PAST_WINDOW)}")


def answer_room(window: int | None, tokens: int) -> int:
    """Return how many tokens `shorten` keeps free for an answer of `tokens` tokens: at most half of the window."""
    return tokens if window is None else min(tokens, window // 2)


def surely_fits(text: str, image_tokens: int, room: int, window: int | None) -> bool:
    """Return whether a text is so short that it fits without counting its tokens."""
    return window is None or _TOKENS_PER_BYTE * (len(text.encode()) + 1) + image_tokens + room <= window


def fitted(
    prompt: str,
    render: Callable[[str], str],
    length: Callable[[str], int],
    *,
    room: int,
    window: int,
    past_window: PastWindow,
    tokenizer: Any,
    where: str,
) -> str:
    """Render a prompt so that it leaves room for the tokens that follow it.

    A longer prompt is refused, or loses tokens at the beginning of the user's text: the images, the system prompt, the
    template and the end of the text stay.

    Args:
        prompt: text of the user.
        render: renders it in the model's template.
        length: counts the tokens of a rendered prompt.
        room: number of tokens that must stay free after it.
        window: see `window_of`.
        past_window: rule for a longer prompt.
        tokenizer: tokenizer of the model.
        where: the prompt and the model, for messages.

    Raises:
        UserError: the prompt is refused, or too long even without the user's text.
    """
    text = render(prompt)
    tokens = length(text)
    if past_window == "refuse" and tokens + room > window:
        problem = f"{tokens:,} tokens and {room:,} to follow, of {window:,} that it reads at once"
        raise UserError(f"{where}: {problem}; shorten it, or give past_window 'shorten'")
    while (excess := length(text) + room - window) > 0:
        shorter = _without_first(prompt, excess, tokenizer)
        if shorter == prompt:
            problem = f"its template and photos alone take {length(text):,} tokens"
            raise UserError(f"{where}: {problem}, with {room:,} to follow, of {window:,} that it reads at once")
        prompt = shorter
        text = render(prompt)
    return text


def room_left(tokens: int, limit: int, window: int | None) -> int:
    """Return how many tokens may follow `tokens` tokens: `limit`, or fewer if the window ends; 0 or less for none."""
    return limit if window is None else min(limit, window - tokens)


def _without_first(prompt: str, tokens: int, tokenizer: Any) -> str:
    """Return the prompt without its first `tokens` tokens of text; the image placeholders are kept."""
    pieces: Sequence[str] = prompt.split(IMAGE_PLACEHOLDER)
    kept = list(pieces)
    for number, piece in enumerate(pieces):
        encoding = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        if tokens < len(offsets):
            kept[number] = piece[max(1, offsets[tokens][0]) :]
            break
        kept[number] = ""
        tokens -= len(offsets)
        if not tokens:
            break
    return IMAGE_PLACEHOLDER.join(kept)
