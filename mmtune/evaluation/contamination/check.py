"""Contamination check: comparison of all training rows with all evaluation rows, by text and by image."""

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

_AT_ONCE = 64  # conversations whose images are decoded in parallel


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """Overlap of one kind between a training row and an evaluation row.

    Attributes:
        task: name of the evaluation task.
        task_row: number of the evaluation row in its split, from 0: the `id` in the evaluation's samples.
        source: file or hub id of the training row.
        row: number of the training row there, from 1: `Conversation.row`.
        kind: `text` (13 consecutive words, a whole row of 8 to 12 words, or all options, of at least 8 words),
            `question` (the whole question, of at least 8 words), `same file`, `same pixels` or `near photo`.
        overlap: longest run of words in common, normalized; for an image, the SHA-256 in common, or the number of hash
            bits that differ.
    """

    task: str
    task_row: int
    source: str
    row: int
    kind: HitKind
    overlap: str


@dataclass(frozen=True, slots=True)
class SetCheck:
    """Result of the comparison for one evaluation set.

    Attributes:
        rows: number of evaluation rows; 0 where the set could not be read.
        hit_rows: number of these rows that overlap with a training row.
        verdict: `seen` if any row overlaps, `unseen` if none does, `unchecked` if the set could not be compared.
        reason: reason why the set could not be compared; None if it was.
        kinds: number of evaluation rows with a hit, by kind of hit.
        fingerprint: hash of the set's rows, as in `results.json`; None where they could not be read.
        uncompared: number of rows that are not compared, since they have no image (those of a single color do not
            count) and too few words of their own; they are included in `rows`.
        undecoded: number of images of the set that cannot be decoded; only their bytes are compared.
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
        """Number of rows with a hit, of all rows, as text."""
        return f"{self.hit_rows} of {self.rows} rows"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Part of a run's unseen.json that is read again."""

    sets: dict[str, SetCheck]


def read_set_checks(run: Path) -> dict[str, SetCheck]:
    """Read the result for each evaluation set from a run's unseen.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = run / "unseen.json"
    remedy = f"delete {run} and give the same command again"
    return validate(_Recorded, read_json(file), str(file), extra="ignore", remedy=remedy).sets


@dataclass(frozen=True, slots=True)
class ContaminationReport:
    """Overlap between training rows and a suite.

    Attributes:
        suite: name of the suite.
        sets: result for each evaluation set, by task name.
        hits: every overlap of two rows, sorted; one per kind for each pair of rows.
        training_rows: number of conversations compared.
        sources: number of conversations compared, by file or hub id.
        fingerprints: SHA-256 of the sources that are files.
        undecoded: number of images of training rows that cannot be read or decoded; of those that can be read, the
            bytes were compared. 0 where the suite has no images, as those of the training rows are not read then.
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
        """Names of the sets that overlap with the training rows."""
        return [name for name, check in self.sets.items() if check.verdict == "seen"]

    def summary(self) -> str:
        """Return the verdicts in one line."""
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
        """Return source and row number of the training rows that overlap with these tasks (None: all tasks checked)."""
        wanted = set(self.sets if tasks is None else tasks)
        return {(hit.source, hit.row) for hit in self.hits if hit.task in wanted}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with the thresholds of the comparison and the version of mmtune."""
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

    The evaluation rows are indexed first and held in memory (texts, and small copies of images); the training rows are
    read once, as a stream. `docs/data.md` defines what counts as a hit.

    Args:
        conversations: the training rows.
        suite: name or file of a suite or task, or the suite itself.
        data_root: folder that contains `hub/…`, as for `mmtune.evaluate`; None reads the sets from the hub.
        tasks: names of the tasks of the suite to compare; None for all.
        limit: maximum number of rows of each task, the first ones; None for all.
        progress: show the progress on stderr.
        total: number of conversations, for the estimate of the remaining time; None if it is unknown.

    Raises:
        UserError: the suite, a task or the folder does not exist, or the limit is below 1. A set that cannot be read is
            `unchecked` instead.
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
    """Indices of the texts and images of an evaluation, with the row of each entry."""

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
        self.rows: list[tuple[str, int]] = []  # task and row number of every row, in the order of the text index
        self.shown_in: dict[str, list[int]] = defaultdict(list)  # positions in `rows`, by SHA-256 of the image
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
        self.image_files = list(prints)  # in the order of the image index


class _OwnRows:
    """Texts and images of the rows of a task."""

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
    """Image of a training row, with its key: the path, or the SHA-256 of its bytes."""

    image: ImageSource
    key: Path | str

    @classmethod
    def of(cls, image: ImageSource) -> _Shown:
        """Create it from the image as the row holds it."""
        return cls(image, image if isinstance(image, Path) else hashlib.sha256(image).hexdigest())

    def print(self) -> ImagePrint | None:
        """Return the fingerprints of the image; empty ones, which match no image, where its file cannot be read."""
        try:
            data = self.image.read_bytes() if isinstance(self.image, Path) else self.image
        except OSError:
            return ImagePrint("")
        return image_print(EncodedImage.of(data))


class _Check:
    """Comparison of a stream of training rows with the evaluation, and the hits so far."""

    def __init__(self, evaluation: _Evaluation, pool: ThreadPoolExecutor) -> None:
        self._evaluation, self._pool = evaluation, pool
        self._sources: Counter[str] = Counter()
        self._hits: dict[tuple[str, int, str, int, HitKind], Hit] = {}
        self._matches: dict[Path | str, list[ImageMatch]] = {}  # of every image so far, by its path or its SHA-256
        self._undecoded = 0

    @property
    def training_rows(self) -> int:
        """Number of training rows compared so far."""
        return self._sources.total()

    def compare(self, conversations: Sequence[Conversation]) -> None:
        """Compare these training rows with all evaluation rows."""
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
        """Return the report on the training rows compared so far."""
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
        """Look up the images that have not been looked up yet."""
        new = [image for key, image in images.items() if key not in self._matches]
        for image, found in zip(new, self._pool.map(_Shown.print, new), strict=True):
            self._matches[image.key] = [] if found is None else self._evaluation.images.find(found)
            self._undecoded += found is not None and found.pixels is None

    def _note(self, conversation: Conversation, row: int, kind: HitKind, overlap: str) -> None:
        """Record a hit; of several hits of one kind between two rows, keep the one with the longest overlap."""
        task, number = self._evaluation.rows[row]
        key = (conversation.source, conversation.row, task, number, kind)
        hit = Hit(task, number, conversation.source, conversation.row, kind, overlap)
        known = self._hits.get(key)
        if known is None or (len(overlap), overlap) > (len(known.overlap), known.overlap):
            self._hits[key] = hit
