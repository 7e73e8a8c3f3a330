"""Tokenization of conversations to token ids and supervised positions."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmtune.common.errors import RowError
from mmtune.data.conversation import IMAGE_PLACEHOLDER, MARK_AS_TEXT, Conversation
from mmtune.data.images import ImageSource
from mmtune.data.rendering.templates import Rendered, Template, adds_bos
from mmtune.interfaces import Turn

IMAGE_TOKEN = -200  # id in `input_ids` at every position of an image feature; LLaVA's number
IGNORED = -100  # target without a label; torch's cross entropy skips it
Tokens = tuple[np.ndarray, np.ndarray]  # input_ids int32 [length] and supervised bool [length]


@dataclass(frozen=True, slots=True)
class Example:
    """Tokenized conversation.

    Attributes:
        input_ids: int32 [length], IMAGE_TOKEN at every position that an image takes.
        supervised: bool [length], True for the tokens of learned answers, with their end markers.
        images: the images, in order.
        where: file and row, for messages.
        cut: number of tokens cut off its end.
        values: numbers in its row that the objective reads, by column.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    images: tuple[ImageSource, ...]
    where: str
    cut: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)


def count_supervised(example: Example) -> int:
    """Count the supervised tokens, without the first token of the document, which is never predicted."""
    return int(example.supervised[1:].sum())


@dataclass(frozen=True)
class ModelInputs:
    """Settings of the model and of the objective that the data pipeline needs.

    Attributes:
        tokenizer: a transformers tokenizer with offset mapping (a fast one).
        template: chat template that renders the conversations.
        tokens_per_image: positions that one image takes; 0 for a text-only model.
        preprocess: converts a decoded image to the input of the vision tower, float32 [3, height, width].
        features: returns precomputed features of an image, [tokens_per_image, width]; None to run the vision tower.
        embedding_rows: number of token ids that have a row in the model's embedding; None where there is no model.
        value_columns: columns of the rows that the objective reads, one number per conversation.
        weight: weight of a document in the mean loss of an optimizer step.
    """

    tokenizer: Any
    template: Template
    tokens_per_image: int = 0
    preprocess: Callable[[Image.Image], torch.Tensor] | None = None
    features: Callable[[ImageSource], torch.Tensor] | None = None
    embedding_rows: int | None = None
    value_columns: tuple[str, ...] = ()
    weight: Callable[[Example], float] = count_supervised


def encode_text(rendered: Rendered, tokenizer: Any, *, tokens_per_image: int = 1) -> Tokens:
    """Tokenize rendered text; each `<image>` becomes `tokens_per_image` times IMAGE_TOKEN.

    The text is tokenized once. A token is supervised if it covers a character of an answer, so a label never
    depends on tokenizing a part again. The pieces between images are tokenized separately, as LLaVA does, with the
    start token (where the tokenizer adds one) before the first piece only.

    Returns:
        input_ids int32 [length] and supervised bool [length].
    """
    ids: list[int] = []
    supervised: list[bool] = []
    learnt_before = _learnt_before(rendered)
    position = 0
    for number, piece in enumerate(rendered.text.split(IMAGE_PLACEHOLDER)):
        if number:
            ids.extend([IMAGE_TOKEN] * tokens_per_image)
            supervised.extend([False] * tokens_per_image)
            position += len(IMAGE_PLACEHOLDER)
        elif adds_bos(tokenizer):
            ids.append(tokenizer.bos_token_id)
            supervised.append(False)
        text = piece.replace(MARK_AS_TEXT, IMAGE_PLACEHOLDER)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids.extend(encoding["input_ids"])
        starts, ends = _widened(encoding["offset_mapping"])
        starts, ends = position + starts, np.minimum(position + ends, len(rendered.text))
        supervised.extend((learnt_before[ends] > learnt_before[starts]).tolist())
        position += len(piece)
    return np.asarray(ids, dtype=np.int32), np.asarray(supervised, dtype=bool)


def _learnt_before(rendered: Rendered) -> np.ndarray:
    """Return, for each position in the text, the number of answer characters before it."""
    counts = np.zeros(len(rendered.text) + 1, dtype=np.int64)
    for start, end in rendered.answers:
        counts[start + 1 : end + 1] = 1
    return np.cumsum(counts)


def _widened(offsets: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last+1 character of each token; each span is at least one character wide.

    A token has no width where sentencepiece adds a space of its own (it goes with the character that follows)
    and where a byte-level tokenizer trims a token of white space alone (it goes with the characters trimmed).
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = spans[:, 0].copy(), spans[:, 1].copy()
    before = np.concatenate([[0], ends[:-1]])
    empty = starts == ends
    trimmed = empty & (before < starts)
    starts[trimmed] = before[trimmed]
    ends[empty & ~trimmed] += 1
    return starts, ends


def encode(conversation: Conversation, inputs: ModelInputs, max_length: int) -> Example:
    """Tokenize a conversation to a training example.

    Raises:
        RowError: see `tokenise` and `as_example`.
    """
    return as_example(conversation, tokenise(conversation, inputs), inputs, max_length)


def tokenise(conversation: Conversation, inputs: ModelInputs) -> Tokens:
    """Tokenize a conversation of any length; `token_store` caches the result.

    Raises:
        RowError: it has images and the model has no vision tower, or the template cannot write it.
    """
    if conversation.images and not inputs.tokens_per_image:
        raise RowError(f"{conversation.where}: has a photo, but the model has no vision tower")
    rendered = inputs.template.render(conversation)
    return encode_text(rendered, inputs.tokenizer, tokens_per_image=inputs.tokens_per_image)


def as_example(
    conversation: Conversation, tokens: Tokens, inputs: ModelInputs, max_length: int, *, truncate: bool = False
) -> Example:
    """Build a training example from a conversation and its tokens.

    Args:
        conversation: the row.
        tokens: its tokens, as `tokenise` returns them.
        inputs: tokens per image, number of embedding rows, and the tokenizer.
        max_length: maximum number of tokens of a row.
        truncate: cut the end off a longer row, with the images there, as LLaVA does.

    Raises:
        RowError: it is longer than `max_length` and may not be cut or would be cut inside an image, no token of an
            answer is left to learn from, or the model's embedding lacks a token of it.
    """
    (ids, supervised), images, where = tokens, conversation.images, conversation.where
    if fault := missing_row(ids, inputs.embedding_rows, inputs.tokenizer):
        raise RowError(f"{where}: {fault}")
    cut = max(0, len(ids) - max_length)
    if cut:
        limit = f"--data.max_length {max_length}"
        if not truncate:
            raise RowError(
                f"{where}: {len(ids)} tokens, and the answer would be cut off at {limit}; raise it, or let "
                "such rows be cut with --data.truncate true"
            )
        ids, supervised = ids[:max_length], supervised[:max_length]
        whole, part = divmod(int((ids == IMAGE_TOKEN).sum()), inputs.tokens_per_image) if images else (0, 0)
        if part:
            raise RowError(f"{where}: {limit} would cut through a photo; raise it")
        images = images[:whole]
        if not supervised[1:].any():
            raise RowError(f"{where}: cut at {limit}, it would have no answer left; raise it")
    if not supervised[1:].any():
        raise RowError(f"{where}: the answer is empty once tokenised")
    return Example(ids, supervised, images, where, cut, conversation.values)


def missing_row(ids: np.ndarray, embedding_rows: int | None, tokenizer: Any) -> str | None:
    """Return an error message if a token has no row in the model's embedding; None if all tokens have one.

    Loading refuses tokenizers that are larger than the embedding, except for tokens such as the padding token.
    """
    if embedding_rows is None or not len(ids) or (most := int(ids.max())) < embedding_rows:
        return None
    token = tokenizer.convert_ids_to_tokens(most)
    return f"the text spells {token!r}, token {most}, and the model's embedding has {embedding_rows} rows; reword it"


def tokenizer_content(tokenizer: Any) -> list[Any]:
    """Return all settings of a fast tokenizer that decide the ids of a text, as JSON values, without its name."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    settings = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}  # set by callers
    return [settings, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}]


@dataclass
class Remarks:
    """Remarks on rows that are used, each with file and row.

    Attributes:
        markers: special tokens of the tokenizer that the row's own text spells. They are tokenized as the tokens they
            spell, as LLaVA does: an `</s>` in a text about HTML ends a turn there.
        left_out: rows with answers that are not learned, and how many.
        left_out_because: why these answers are not learned; the reason lies in the template.
        trimmed: rows with answers whose leading white space (the indentation of code) the template does not write.
    """

    markers: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    left_out_because: str = ""
    trimmed: list[str] = field(default_factory=list)

    def look_at(self, conversation: Conversation, supervised: np.ndarray | None, inputs: ModelInputs) -> None:
        """Add the remarks on a row.

        Args:
            conversation: the row.
            supervised: supervised positions among all its tokens, bool [length]; None where some were cut off.
            inputs: the tokenizer, whose special tokens are searched for, and the template, which may leave answers out.
        """
        pattern = _marker_pattern(inputs.tokenizer)
        if found := sorted({marker for turn in conversation.turns for marker in pattern.findall(turn.text)}):
            self.markers.append(f"{conversation.where}: {', '.join(found)}")
        answers = sum(turn.supervised for turn in conversation.dialogue if turn.role == "assistant")
        if supervised is not None and (missing := answers - _answers_learnt(supervised)):
            self.left_out.append(f"{conversation.where}: {missing} of {answers} answers")
            self.left_out_because = inputs.template.left_out
        if inputs.template.trims and (lost := sum(map(_begins_blank, conversation.dialogue))):
            self.trimmed.append(f"{conversation.where}: {lost} of {answers} answers")


def _begins_blank(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.supervised and turn.text[:1].isspace()


def _answers_learnt(supervised: np.ndarray) -> int:
    """Count the learned answers: each is one run of supervised tokens, and two runs never touch."""
    return int((supervised & ~np.concatenate([[False], supervised[:-1]])).sum())


@functools.lru_cache(maxsize=4)
def _marker_pattern(tokenizer: Any) -> re.Pattern[str]:
    markers = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")
