"""Vocabulary size of the word embedding, and a check of the tokenizer against it."""

from __future__ import annotations

from typing import Any

from mmtune.common.errors import UserError

# tokens that many tokenizers have beyond the embedding's last row; they occur only in a text that spells them
_SELDOM_WRITTEN = ("pad_token", "image_token", "boi_token", "eoi_token", "audio_token", "video_token")


class VocabularyError(UserError):
    """Tokenizer with ids for which the embedding has no row."""


def vocabulary_size(config: Any) -> int | None:
    """Return the number of rows of the word embedding from a transformers config; None if it does not name it."""
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def check_tokenizer(tokenizer: Any, rows: int | None, reference: str) -> None:
    """Check that the embedding has a row for every token of ordinary text.

    The embedding may have more rows: vocabularies are padded. The id of a padding token or of an image token may lie
    beyond the last row; a data row or a prompt that spells such a token is refused where it occurs.

    Args:
        tokenizer: tokenizer of the language model.
        rows: number of rows of its word embedding; None if unknown.
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
