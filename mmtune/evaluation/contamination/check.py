"""Whether an evaluation's sets are unseen: every training row against every evaluation row, by text and by photo."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmtune.common.errors import UserError
from mmtune.common.files import locate, read_json, sha256_file
from mmtune.common.schema import validate
from mmtune.common.text import visible
from mmtune.common.version import __version__
from mmtune.data.conversation import IMAGE_PLACEHOLDER, Conversation
from mmtune.data.images import EncodedImage, ImageSource
from mmtune.evaluation.contamination.images import ImageIndex, ImageKind, ImageMatch, ImagePrint, image_print
from mmtune.evaluation.contamination.text import COMMON, NGRAM, SHORTEST, RowText, TextIndex, TextKind
from mmtune.evaluation.run.progress import Reporter
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.suite import Suite, load_suite
from mmtune.evaluation.tasks.task import Task

HitKind = TextKind | ImageKind
SetVerdict = Literal["unseen", "seen", "unchecked"]

_AT_ONCE = 64  # conversations whose photos are decoded side by side


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """A training row and an evaluation row that have something in common.

    Attributes:
        task: the evaluation's set.
        task_row: the row's number in its split, from 0: the `id` in the evaluation's samples.
        source: the file or hub id of the training row.
        row: its number there, from 1: `Conversation.row`.
        kind: `text` (13 words in a row, or all of a text of 8 to 12), `question` (the whole question), `same file`,
            `same pixels` or `near photo`.
        overlap: the longest run of words in common, normalised; of a photo the SHA-256 in common, or how near it is.
    """

    task: str
    task_row: int
    source: str
    row: int
    kind: HitKind
    overlap: str


@dataclass(frozen=True, slots=True)
class SetCheck:
    """What was found of one set.

    Attributes:
        rows: evaluation rows compared; 0 where the set could not be checked.
        hit_rows: how many of them have something in common with a training row.
        verdict: `seen` if any has, `unseen` if none, `unchecked` if the set could not be compared.
        reason: why it could not, or None.
        kinds: evaluation rows hit, by the kind of hit.
        fingerprint: of the set's rows, as in `results.json`; None where they could not be read.
        uncompared: rows without a photo and with too few words of their own to be compared; they count among `rows`.
        undecoded: photos of the set that cannot be decoded, compared by their bytes alone.
    """

    rows: int
    hit_rows: int
    verdict: SetVerdict
    reason: str | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    fingerprint: str | None = None
    uncompared: int = 0
    undecoded: int = 0

    @property
    def share(self) -> str:
        """How many of the rows are hit, in words."""
        return f"{self.hit_rows} of {self.rows} rows"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Of a run's unseen.json what is read again."""

    sets: dict[str, SetCheck]


def read_set_checks(run: Path) -> dict[str, SetCheck]:
    """Read what a run's training rows have in common with each set, from its unseen.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = run / "unseen.json"
    remedy = f"delete {run} and give the same command again"
    return validate(_Recorded, read_json(file), str(file), extra="ignore", remedy=remedy).sets


@dataclass(frozen=True, slots=True)
class ContaminationReport:
    """What training rows and a suite have in common.

    Attributes:
        suite: the suite's name.
        sets: what was found, by task.
        hits: every pair of rows with something in common, sorted.
        training_rows: conversations compared.
        sources: conversations compared, by file or hub id.
        fingerprints: SHA-256 of the sources that are files.
        undecoded: photos of training rows that cannot be read or decoded; of those that can be read, the bytes were
            compared.
    """

    suite: str
    sets: dict[str, SetCheck]
    hits: list[Hit]
    training_rows: int
    sources: dict[str, int]
    fingerprints: dict[str, str]
    undecoded: int

    @property
    def seen(self) -> list[str]:
        """The sets that have something in common with the training rows."""
        return [name for name, check in self.sets.items() if check.verdict == "seen"]

    def summary(self) -> str:
        """What was found, in one line."""
        verdicts = [check.verdict for check in self.sets.values()]
        seen = ", ".join(f"{name}: {self.sets[name].share}" for name in self.seen)
        parts = [
            f"{verdicts.count('unseen')} sets unseen",
            f"{verdicts.count('seen')} seen" + (f" ({seen})" if seen else ""),
        ]
        if unchecked := [name for name, check in self.sets.items() if check.verdict == "unchecked"]:
            parts.append(f"{len(unchecked)} unchecked ({', '.join(unchecked)})")
        return visible(f"{self.suite} against {self.training_rows:,} training rows: {', '.join(parts)}")

    def rows_to_leave_out(self, tasks: Iterable[str] | None = None) -> set[tuple[str, int]]:
        """Source and row of the training rows without which these tasks (None: all that were checked) are unseen."""
        wanted = set(self.sets if tasks is None else tasks)
        return {(hit.source, hit.row) for hit in self.hits if hit.task in wanted}

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it, with what the comparison was and who made it."""
        values = dataclasses.asdict(self)
        convention = {"words_in_a_row": NGRAM, "shortest_text": SHORTEST, "common_above_sources": COMMON}
        return {**values, "convention": convention, "versions": {"mmtune": __version__}}


def check_contamination(
    conversations: Iterable[Conversation],
    suite: str | Path | Suite,
    *,
    data_root: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    progress: bool = False,
    total: int | None = None,
) -> ContaminationReport:
    """Compare training rows with all rows of a suite.

    The evaluation is indexed first and held in memory (texts and small copies of photos); the training rows stream by
    once. `docs/data.md` says what counts as a hit.

    Args:
        conversations: the training rows.
        suite: a suite's or task's name, its file, or the suite itself.
        data_root: a folder with `hub/…`, as for `mmtune.evaluate`; None for the hub.
        tasks: only these tasks of the suite.
        limit: only the first so many rows of each task.
        progress: show on stderr how far it is.
        total: how many conversations there are, for the time left.

    Raises:
        UserError: there is no such suite, task or folder. A set that cannot be read is `unchecked` instead.
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    root = None if data_root is None else Path(data_root).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    reporter = Reporter(shown=progress)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        evaluation = _Evaluation(suite, suite.select(tasks), root, limit, pool, reporter)
        check = _Check(evaluation, pool)
        with reporter.task("training rows", total, 0):
            rows = iter(conversations)
            while chunk := list(itertools.islice(rows, _AT_ONCE)):
                check.compare(chunk)
                reporter.reached(check.training_rows)
    return check.report(suite.name)


class _Evaluation:
    """The evaluation's side: indices of its texts and photos, and which row each entry belongs to."""

    def __init__(
        self,
        suite: Suite,
        tasks: Sequence[Task],
        root: Path | None,
        limit: int | None,
        pool: ThreadPoolExecutor,
        reporter: Reporter,
    ) -> None:
        self.sets: dict[str, SetCheck] = {}
        self.rows: list[tuple[str, int]] = []  # task and number of every row, as the text index numbers them
        self.shown_in: dict[str, list[int]] = defaultdict(list)  # rows, by the SHA-256 of a photo's file
        prints: dict[str, ImagePrint] = {}
        texts: list[list[RowText]] = []
        for task in tasks:
            try:
                own = _OwnRows(task, Renderer(task, suite.protocol), root, limit)
            except UserError as error:
                self.sets[task.name] = SetCheck(0, 0, "unchecked", str(error))
                continue
            undecoded = 0
            with reporter.task(f"photos of {task.name}", len(own.images), 0, unit="photos"):
                for done, found in enumerate(pool.map(image_print, own.images), 1):
                    if found is not None:
                        prints[found.encoded] = found
                        undecoded += found.pixels is None
                    reporter.reached(done)
            self.sets[task.name] = SetCheck(
                len(own.texts), 0, "unseen", fingerprint=own.fingerprint, undecoded=undecoded
            )
            for digest, places in own.shown_in.items():
                self.shown_in[digest] += [len(self.rows) + place for place in places]
            self.rows += [(task.name, number) for number in own.numbers]
            texts.append(own.texts)
        self.texts = TextIndex(texts)
        self.images = ImageIndex(list(prints.values()))
        comparable = self.texts.comparable | {row for digest in prints for row in self.shown_in[digest]}
        uncompared = Counter(task for row, (task, _) in enumerate(self.rows) if row not in comparable)
        for name, count in uncompared.items():
            check = dataclasses.replace(self.sets[name], uncompared=count)
            if count == check.rows:
                check = dataclasses.replace(check, verdict="unchecked", reason="no row has a photo or enough words")
            self.sets[name] = check
        self.image_files = list(prints)  # as the photo index numbers them


class _OwnRows:
    """What the rows of a task say and show."""

    def __init__(self, task: Task, renderer: Renderer, root: Path | None, limit: int | None) -> None:
        limits = [one for one in (limit, task.limit) if one is not None]
        found = load_rows(task, root, limit=min(limits, default=None), keep=renderer.keeps)
        self.fingerprint = found.fingerprint
        self.numbers = [number for number, _ in found.rows]
        self.texts: list[RowText] = []
        self.shown_in: dict[str, list[int]] = defaultdict(list)
        images: dict[str, EncodedImage] = {}
        for place, (number, row) in enumerate(found.rows):
            shown = [row[column] for column in task.images if row[column] is not None]
            for image in shown:
                images[image.sha256] = image
                self.shown_in[image.sha256].append(place)
            own = renderer.own_texts(number, row)
            source = tuple(image.sha256 for image in shown) if shown else max(own.pieces, key=len, default="")
            question = own.pieces[-1] if own.pieces else ""
            options = "\n".join(own.options)
            self.texts.append(RowText("\n".join((*own.pieces, options)), question, options, source))
        self.images = list(images.values())


@dataclass(frozen=True, slots=True)
class _Shown:
    """A photo of a training row, and what it is known by: its path, or the digest of its bytes."""

    image: ImageSource
    key: Path | str

    @classmethod
    def of(cls, image: ImageSource) -> _Shown:
        """A photo as the row has it."""
        return cls(image, image if isinstance(image, Path) else hashlib.sha256(image).hexdigest())

    def print(self) -> ImagePrint | None:
        """What it is compared by; without a file, nothing that any photo has."""
        try:
            data = self.image.read_bytes() if isinstance(self.image, Path) else self.image
        except OSError:
            return ImagePrint("")
        return image_print(EncodedImage.of(data))


class _Check:
    """The training rows that went by, and what they have in common with the evaluation."""

    def __init__(self, evaluation: _Evaluation, pool: ThreadPoolExecutor) -> None:
        self._evaluation, self._pool = evaluation, pool
        self._sources: Counter[str] = Counter()
        self._hits: dict[tuple[str, int, str, int, HitKind], Hit] = {}
        self._matches: dict[Path | str, list[ImageMatch]] = {}  # of every photo seen, by its path or its digest
        self._undecoded = 0

    @property
    def training_rows(self) -> int:
        """How many went by."""
        return self._sources.total()

    def compare(self, conversations: Sequence[Conversation]) -> None:
        """Compare these rows with all of the evaluation."""
        images = [[_Shown.of(image) for image in one.images] for one in conversations]
        if self._evaluation.shown_in:
            self._look_at({image.key: image for shown in images for image in shown})
        for conversation, shown in zip(conversations, images, strict=True):
            self._sources[conversation.source] += 1
            text = "\n".join(turn.text for turn in conversation.turns).replace(IMAGE_PLACEHOLDER, "\n")
            for overlap in self._evaluation.texts.find(text):
                self._note(conversation, overlap.row, overlap.kind, overlap.words)
            for image in shown:
                for match in self._matches.get(image.key, ()):
                    for row in self._evaluation.shown_in[self._evaluation.image_files[match.number]]:
                        self._note(conversation, row, match.kind, match.detail)

    def report(self, suite: str) -> ContaminationReport:
        """What was found."""
        hits = sorted(self._hits.values())
        sets = dict(self._evaluation.sets)
        for name, check in sets.items():
            kinds = defaultdict(set)
            for hit in hits:
                if hit.task == name:
                    kinds[hit.kind].add(hit.task_row)
            if kinds:
                hit_rows = len(set().union(*kinds.values()))
                by_kind: dict[str, int] = {kind: len(rows) for kind, rows in sorted(kinds.items())}
                sets[name] = dataclasses.replace(check, verdict="seen", hit_rows=hit_rows, kinds=by_kind)
        sources = dict(sorted(self._sources.items()))
        files = {source: path for source in sources if (path := locate(source)).is_file()}
        return ContaminationReport(
            suite=suite,
            sets=sets,
            hits=hits,
            training_rows=self.training_rows,
            sources=sources,
            fingerprints={source: sha256_file(path) for source, path in files.items()},
            undecoded=self._undecoded,
        )

    def _look_at(self, images: Mapping[Path | str, _Shown]) -> None:
        """Find the photos that have not been looked for yet."""
        new = [image for key, image in images.items() if key not in self._matches]
        for image, found in zip(new, self._pool.map(_Shown.print, new), strict=True):
            self._matches[image.key] = [] if found is None else self._evaluation.images.find(found)
            self._undecoded += found is not None and found.pixels is None

    def _note(self, conversation: Conversation, row: int, kind: HitKind, overlap: str) -> None:
        """Note a hit; of several conversations in one row, the one with more words in common."""
        task, number = self._evaluation.rows[row]
        key = (conversation.source, conversation.row, task, number, kind)
        hit = Hit(task, number, conversation.source, conversation.row, kind, overlap)
        known = self._hits.get(key)
        if known is None or (len(overlap), overlap) > (len(known.overlap), known.overlap):
            self._hits[key] = hit
