"""Which token ids the word embedding has a row for."""

from __future__ import annotations

from typing import Any

from mmtune.common.errors import UserError

# named by many tokenizers beyond the embedding's last row; only a text that spells them has them
_SELDOM_WRITTEN = ("pad_token", "image_token", "boi_token", "eoi_token", "audio_token", "video_token")


class VocabularyError(UserError):
    """A tokenizer that gives ids which the embedding has no row for."""


def vocabulary_size(config: Any) -> int | None:
    """Rows of the word embedding by a config of transformers; None where it does not say."""
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def check_tokenizer(tokenizer: Any, rows: int | None, reference: str) -> None:
    """Make sure that the embedding has a row for every token that text is made of.

    It may have more: vocabularies are padded. A token for padding or for a photo's place may lie beyond; a row or a
    prompt that spells one is refused where it occurs.

    Args:
        tokenizer: the language model's.
        rows: of its word embedding; None where that is not known.
        reference: the language model, for the message.

    Raises:
        VocabularyError: a token has no row.
    """
    if rows is None:
        return
    seldom = {str(token) for name in _SELDOM_WRITTEN if (token := getattr(tokenizer, name, None)) is not None}
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if written := [number for number, token in beyond.items() if token not in seldom]:
        first, most = min(written), max(written) + 1
        raise VocabularyError(
            f"{reference}: the tokenizer is larger than the embedding: it has {most} tokens, and the embedding {rows} "
            f"rows, none for {beyond[first]!r} with the id {first}; take the tokenizer that the weights were saved "
            f"with, or give the model rows (transformers' resize_token_embeddings({most})) and save both"
        )
