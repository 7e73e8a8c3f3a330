"""Statistics of a data source as training will use it, without keeping its rows in memory."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtune.common.errors import RowError
from mmtune.data.conversation import Conversation, ImageCheck
from mmtune.data.encoding import Example, ModelInputs, Remarks, as_example, encode
from mmtune.data.rendering.templates import Rendered
from mmtune.data.sources.readers import BadRows, read_rows


@dataclass(frozen=True)
class Sample:
    """Rendered text and token counts of one conversation, as it will be trained on."""

    row: int
    rendered: Rendered
    tokens: int
    supervised: int


@dataclass
class Survey:
    """Statistics of one source.

    Attributes:
        source: the file or hub id.
        formats: number of conversations by the recognized format of their row.
        rows: number of rows with at least one usable conversation.
        turns: number of turns of each conversation, without the system prompt.
        with_images: number of conversations with an image.
        tokens: number of tokens of each conversation, including the positions of its images.
        supervised: number of supervised tokens of each conversation.
        bad_rows: why rows cannot be used, each with file and row.
        unread: for each column, or key of a turn, that is not read: the number of rows that fill it.
        long_rows: error message of training for each conversation that is too long, unless it is set to cut or skip it.
        remarks: remarks on rows that can be used.
        samples: the requested sample conversations.
    """

    source: str
    formats: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    turns: list[int] = field(default_factory=list)
    with_images: int = 0
    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    long_rows: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)
    samples: list[Sample] = field(default_factory=list)

    @property
    def conversations(self) -> int:
        """Number of usable conversations; a row may hold several."""
        return len(self.tokens)

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            "source": self.source,
            "formats": dict(self.formats),
            "rows": self.rows,
            "conversations": self.conversations,
            "turns": figures(self.turns),
            "with_images": self.with_images,
            "tokens": figures(self.tokens),
            "supervised": figures(self.supervised),
            "too_long": len(self.long_rows),
            "too_long_rows": self.long_rows,
            "bad_rows": {"count": len(self.bad_rows), "messages": self.bad_rows},
            "columns_not_read": dict(self.unread),
            "rows_spelling_markers": {"count": len(self.remarks.markers), "rows": self.remarks.markers},
            "rows_with_answers_trimmed": {"count": len(self.remarks.trimmed), "rows": self.remarks.trimmed},
            "rows_with_answers_left_out": {
                "count": len(self.remarks.left_out),
                "because": self.remarks.left_out_because,
                "rows": self.remarks.left_out,
            },
        }


def survey(
    source: str,
    inputs: ModelInputs,
    *,
    max_length: int,
    image_root: str | None = None,
    check_images: bool = True,
    samples: int = 0,
    sample_row: int | None = None,
) -> Survey:
    """Read a source once, tokenize every row, and collect the statistics.

    Args:
        source: as for `read_conversations`.
        inputs: tokenizer, template and tokens per photo.
        max_length: tokens a row may have in training; a longer one is counted like all others, and listed.
        image_root: the folder photo paths are relative to.
        check_images: decode every photo, each once.
        samples: how many conversations to keep, from the first on.
        sample_row: keep the conversations of this row instead.

    Raises:
        UserError: the source cannot be read at all. Rows that cannot be used are listed in the survey.
    """
    bad_rows = BadRows("skip")
    result = Survey(source, bad_rows=bad_rows.skipped)
    image_check = ImageCheck()
    last_row = 0
    for reading in read_rows(source, image_root=image_root, bad_rows=bad_rows):
        conversation = reading.conversation
        try:
            if check_images:
                image_check.check(conversation)
            example = encode(conversation, inputs, sys.maxsize)
        except RowError as error:
            bad_rows.handle(error)
            continue
        result.formats[reading.format] += 1
        result.rows += conversation.row != last_row
        last_row = conversation.row
        result.turns.append(len(conversation.dialogue))
        result.with_images += bool(conversation.images)
        result.tokens.append(len(example))
        result.supervised.append(int(example.supervised.sum()))
        try:
            as_example(conversation, (example.input_ids, example.supervised), inputs, max_length)
        except RowError as error:
            result.long_rows.append(str(error))
        result.remarks.look_at(conversation, example.supervised, inputs)
        if conversation.row == sample_row or (sample_row is None and len(result.samples) < samples):
            result.samples.append(_sample(conversation, example, inputs))
    result.unread.update(bad_rows.unread.get(source, {}))
    return result


def figures(values: list[int]) -> dict[str, float] | None:
    """Return minimum, median, mean, 95th percentile, maximum and total; None for an empty list."""
    if not values:
        return None
    numbers = np.asarray(values)
    return {
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "mean": float(numbers.mean()),
        "p95": float(np.percentile(numbers, 95)),
        "max": int(numbers.max()),
        "total": int(numbers.sum()),
    }


def _sample(conversation: Conversation, example: Example, inputs: ModelInputs) -> Sample:
    rendered = inputs.template.render(conversation)
    return Sample(conversation.row, rendered, len(example), int(example.supervised.sum()))
