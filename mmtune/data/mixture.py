"""Draw the training set: how much text, how much with photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from mmtune.data.conversation import Conversation, RowError
from mmtune.data.readers import BadRows, read_conversations
from mmtune.errors import UserError, check_seed
from mmtune.files import locate, read_json


@dataclass
class Mixture:
    """Which rows are trained on. The recipe's sets are `text_fraction` 1.0, 0.88, 0.5 and 0.0.

    Attributes:
        text: files or hub ids whose rows hold no photo; one with a photo there is an error.
        visual: files or hub ids whose rows may hold photos; rows of these without a photo count as text.
        text_fraction: the share of rows without a photo, 0 to 1; None keeps what the sources give.
        total: rows to draw, without repetition; None takes as many as the fraction allows.
        seed: decides which rows are drawn, and their order.
        image_root: the folder photo paths are relative to; None: beside each file, or its `images` folder.
        leave_out: a JSON file that names rows not to draw, as `mmtune data --unseen SUITE --json` prints them: under
            `hits`, each with `source` and `row`.
    """

    text: list[str] = field(default_factory=list)
    visual: list[str] = field(default_factory=list)
    text_fraction: float | None = None
    total: int | None = None
    seed: int = 42
    image_root: str | None = None
    leave_out: str | None = None

    def __post_init__(self) -> None:
        if self.text_fraction is not None and not 0 <= self.text_fraction <= 1:
            raise UserError(
                f"--data.train.text_fraction {self.text_fraction}: must lie between 0 (all visual) and 1 (all text)"
            )
        if self.total is not None and self.total < 1:
            raise UserError(f"--data.train.total {self.total}: must be at least 1")
        check_seed(self.seed, "--data.train.seed")

    def draw(
        self, bad_rows: BadRows, usable: Callable[[Conversation], bool] = lambda conversation: True
    ) -> list[Conversation]:
        """Read the sources and draw the rows, shuffled by the seed.

        Args:
            bad_rows: what to do with rows that cannot be used.
            usable: called once for a row that is about to be drawn; where it says no, another row takes its place, so
                that fraction and total are those of what is trained on.

        Raises:
            UserError: no source, an unreadable one, a damaged `leave_out`, or fewer rows of a kind than the fraction
                asks for.
        """
        if not self.text and not self.visual:
            raise UserError("no training data: give --data.train.text or --data.train.visual a file or hub id")
        text: list[Conversation] = []
        visual: list[Conversation] = []
        left_out = _named_rows(self.leave_out) if self.leave_out else set()

        def kept(source: str, image_root: str | None = None) -> Iterator[Conversation]:
            place = _place(source)
            rows = read_conversations(source, image_root=image_root, bad_rows=bad_rows)
            return (c for c in rows if (place, c.row) not in left_out) if left_out else rows

        for source in self.text:
            for conversation in kept(source):
                if conversation.images:
                    bad_rows.handle(RowError(f"{conversation.where}: has a photo; give it under --data.train.visual"))
                    continue
                text.append(conversation)
        for source in self.visual:
            for conversation in kept(source, self.image_root):
                (visual if conversation.images else text).append(conversation)
        if not text and not visual:
            if bad_rows.skipped:
                raise UserError(f"no row of the sources can be used; the first one left out: {bad_rows.skipped[0]}")
            raise UserError(f"--data.train.leave_out {self.leave_out}: names every row of the sources; none is left")
        random = np.random.default_rng(self.seed)
        text, visual = ([pool[i] for i in random.permutation(len(pool))] for pool in (text, visual))
        if self.total is None and self.text_fraction is not None:  # what one kind lacks limits the other
            self._counts(len(text), len(visual))  # complains before the work that `usable` may be
            text, visual = list(filter(usable, text)), list(filter(usable, visual))
            wanted = self._counts(len(text), len(visual))
            drawn = text[: wanted[0]] + visual[: wanted[1]]
        else:
            drawn = []
            for kind, pool, count in zip(
                ("text", "visual"), (text, visual), self._counts(len(text), len(visual)), strict=True
            ):
                taken = list(islice(filter(usable, pool), count))
                if self.total is not None and len(taken) < count:
                    raise _too_few(count, kind, f"{len(taken)} that can be used")
                drawn += taken
        return [drawn[i] for i in random.permutation(len(drawn))]

    def _counts(self, text: int, visual: int) -> tuple[int, int]:
        """How many rows of each kind to draw from pools of these sizes."""
        fraction = self.text_fraction
        if fraction is None:
            fraction = text / (text + visual)
            total = text + visual if self.total is None else self.total
        elif self.total is not None:
            total = self.total
        else:
            limits = [text / fraction] if fraction > 0 else []
            limits += [visual / (1 - fraction)] if fraction < 1 else []
            total = int(min(limits) + 1e-9)
        wanted_text = round(total * fraction)
        wanted = {"text": (wanted_text, text), "visual": (total - wanted_text, visual)}
        for kind, (count, available) in wanted.items():
            if count > available:
                raise _too_few(count, kind, str(available))
        if not total:
            raise UserError("the mixture is empty; check --data.train.text_fraction against the sources")
        return wanted_text, total - wanted_text


def _named_rows(file: str) -> set[tuple[str, int]]:
    """The sources and row numbers that a file names."""
    found = read_json(locate(file))
    hits = found.get("hits") if isinstance(found, dict) else None
    if not isinstance(hits, list) or not all(map(_is_hit, hits)):
        raise UserError(f"--data.train.leave_out {file}: needs 'hits', a list of objects with 'source' and 'row'")
    return {(_place(hit["source"]), hit["row"]) for hit in hits}


def _is_hit(value: Any) -> bool:
    """Whether it names a row: its source, and its number there."""
    return isinstance(value, dict) and isinstance(value.get("source"), str) and type(value.get("row")) is int


def _place(source: str) -> str:
    """The same for a file however its path is written."""
    try:
        return str(locate(source).resolve(strict=True))
    except (UserError, OSError, ValueError):  # a hub id, or a file that is not here any more
        return source


def _too_few(wanted: int, kind: str, available: str) -> UserError:
    return UserError(
        f"the mixture asks for {wanted} {kind} rows and the sources hold {available}; "
        f"lower --data.train.total, change --data.train.text_fraction, or add {kind} data"
    )


def composition(conversations: Sequence[Conversation]) -> dict[str, dict[str, int]]:
    """Rows with and without photos, by source."""
    text = Counter(c.source for c in conversations if not c.images)
    visual = Counter(c.source for c in conversations if c.images)
    return {s: {"text": text[s], "visual": visual[s]} for s in sorted({*text, *visual})}
