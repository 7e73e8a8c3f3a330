"""Mixture of text-only rows and rows with images that forms the training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from mmtune.common.errors import RowError, UserError, check_seed
from mmtune.common.files import locate, read_json
from mmtune.data.conversation import Conversation
from mmtune.data.sources.readers import BadRows, read_conversations

T = TypeVar("T")
Pools = tuple[list[T | None], list[T | None]]  # of text and of visual rows, in the order they are read


@dataclass
class Mixture:
    """Selection of the training rows. The recipe's sets are `text_fraction` 1.0, 0.88, 0.5 and 0.0.

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
        self, bad_rows: BadRows, take: Callable[[Conversation], T | None], value_columns: Sequence[str] = ()
    ) -> list[T]:
        """Read the sources and draw the rows, shuffled by the seed.

        No conversation is kept, only what `take` makes of it: where not every row is drawn, the sources are read once
        to count their rows, and again for those that are drawn.

        Args:
            bad_rows: what to do with rows that cannot be used.
            take: called once for a row that is about to be drawn; if it returns None, another row takes its place, so
                that fraction and total are those of what is trained on.
            value_columns: columns that hold a number in every row; see `read_conversations`.

        Returns:
            Results of `take` for the rows that are drawn.

        Raises:
            UserError: no source, an unreadable one, a damaged `leave_out`, or fewer rows of a kind than the fraction
                asks for.
        """
        if not self.text and not self.visual:
            raise UserError("no training data: give --data.train.text or --data.train.visual a file or hub id")
        every_row = self.total is None and self.text_fraction is None
        pools: Pools[T] = ([], [])
        for conversation in self._rows(bad_rows, value_columns):
            pools[bool(conversation.images)].append(take(conversation) if every_row else None)
        text, visual = map(len, pools)
        if not text and not visual:
            if bad_rows.skipped:
                raise UserError(f"no row of the sources can be used; the first one left out: {bad_rows.skipped[0]}")
            raise UserError(f"--data.train.leave_out {self.leave_out}: names every row of the sources; none is left")
        random = np.random.default_rng(self.seed)
        orders = random.permutation(text), random.permutation(visual)
        if not every_row:
            counts = self._counts(text, visual)  # raises an error before `take`, which may be slow
            self._take(pools, orders, counts if self.total is not None else (text, visual), take, value_columns)
        taken = [
            [one for place in order if (one := pool[place]) is not None]
            for pool, order in zip(pools, orders, strict=True)
        ]
        if every_row:
            counts = (len(taken[0]), len(taken[1]))
        elif self.total is None:  # what one kind lacks limits the other
            counts = self._counts(len(taken[0]), len(taken[1]))
        drawn: list[T] = []
        for kind, ones, count in zip(("text", "visual"), taken, counts, strict=True):
            if len(ones) < count:
                raise _too_few(count, kind, f"{len(ones)} that can be used")
            drawn += ones[:count]
        return [drawn[i] for i in random.permutation(len(drawn))]

    def _rows(self, bad_rows: BadRows, value_columns: Sequence[str]) -> Iterator[Conversation]:
        """Yield every row of the sources that may be drawn."""
        left_out = _named_rows(self.leave_out) if self.leave_out else set()

        def kept(source: str, image_root: str | None = None) -> Iterator[Conversation]:
            place = _place(source)
            rows = read_conversations(source, image_root=image_root, bad_rows=bad_rows, value_columns=value_columns)
            return (c for c in rows if (place, c.row) not in left_out) if left_out else rows

        for source in self.text:
            for conversation in kept(source):
                if conversation.images:
                    bad_rows.handle(RowError(f"{conversation.where}: has a photo; give it under --data.train.visual"))
                    continue
                yield conversation
        for source in self.visual:
            yield from kept(source, self.image_root)

    def _take(
        self,
        pools: Pools[T],
        orders: tuple[np.ndarray, np.ndarray],
        counts: tuple[int, int],
        take: Callable[[Conversation], T | None],
        value_columns: Sequence[str],
    ) -> None:
        """Call `take` for the first `counts` rows in the order of each pool; the next row replaces a refused one."""
        asked, filled = [0, 0], [0, 0]
        while True:
            wanted = [np.zeros(len(pool), dtype=bool) for pool in pools]
            for kind in (0, 1):
                ahead = orders[kind][asked[kind] :][: counts[kind] - filled[kind]]
                asked[kind] += len(ahead)
                wanted[kind][ahead] = True
            if not any(places.any() for places in wanted):
                return
            seen = [0, 0]
            for conversation in self._rows(BadRows("skip"), value_columns):  # bad ones are noted already
                kind = int(bool(conversation.images))
                place = seen[kind]
                seen[kind] += 1
                if place < len(pools[kind]) and wanted[kind][place]:
                    pools[kind][place] = taken = take(conversation)
                    filled[kind] += taken is not None
            if seen != [*map(len, pools)]:
                raise UserError("the training data has changed while it was read; give the same command again")

    def _counts(self, text: int, visual: int) -> tuple[int, int]:
        """Return how many rows of each kind to draw from pools of these sizes."""
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
    """Read the sources and row numbers that a file names."""
    found = read_json(locate(file))
    hits = found.get("hits") if isinstance(found, dict) else None
    if not isinstance(hits, list) or not all(map(_is_hit, hits)):
        raise UserError(f"--data.train.leave_out {file}: needs 'hits', a list of objects with 'source' and 'row'")
    return {(_place(hit["source"]), hit["row"]) for hit in hits}


def _is_hit(value: Any) -> bool:
    """Return whether the value names a row by its source and its row number."""
    return isinstance(value, dict) and isinstance(value.get("source"), str) and type(value.get("row")) is int


def _place(source: str) -> str:
    """Return the resolved path of a file, equal for all spellings of it; any other source is returned unchanged."""
    try:
        return str(locate(source).resolve(strict=True))
    except (UserError, OSError, ValueError):  # a hub id, or a file that is not here any more
        return source


def _too_few(wanted: int, kind: str, available: str) -> UserError:
    return UserError(
        f"the mixture asks for {wanted} {kind} rows and the sources hold {available}; "
        f"lower --data.train.total, change --data.train.text_fraction, or add {kind} data"
    )


def composition(rows: Iterable[tuple[str, bool]]) -> dict[str, dict[str, int]]:
    """Count rows with and without images by source; each row is given as its source and whether it shows an image."""
    counts = Counter(rows)
    sources = sorted({source for source, _ in counts})
    return {s: {"text": counts[s, False], "visual": counts[s, True]} for s in sources}
