"""What ends an answer: markers of the chat template, the tokenizer's end token and those of the generation config."""

from __future__ import annotations

from typing import Any

from mmtune.data.rendering.templates import Template


def end_ids(template: Template, tokenizer: Any, language: Any) -> list[int]:
    """Ids of the tokens that end an answer.

    Args:
        template: whose markers are tokens of the tokenizer, or text.
        tokenizer: the model's.
        language: the causal language model; its generation config may name one end token, several or none.
    """
    named = language.generation_config.eos_token_id if getattr(language, "generation_config", None) else None
    ids = {*_listed(named), *_listed(tokenizer.eos_token_id)}
    ids |= {number for marker in template.stops if (number := _marker_id(marker, tokenizer)) is not None}
    return sorted(ids)


def end_texts(template: Template, tokenizer: Any) -> tuple[str, ...]:
    """The template's markers that are text to the tokenizer and not one token."""
    return tuple(marker for marker in template.stops if _marker_id(marker, tokenizer) is None)


def _marker_id(marker: str, tokenizer: Any) -> int | None:
    """The id of a marker that is a token of its own, which the text of an answer cannot spell by chance."""
    number: int | None = tokenizer.convert_tokens_to_ids(marker)
    if number is None or number == tokenizer.unk_token_id:
        return None
    return number if number in tokenizer.added_tokens_decoder or number in tokenizer.all_special_ids else None


def _listed(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, (list, tuple)) else [int(value)]
