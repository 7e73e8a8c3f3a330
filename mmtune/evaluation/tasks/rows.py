"""Rows of a task, from `DIR/hub/<hub id>/<config>/<split>.parquet` or from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.common.errors import UserError, brief, did_you_mean
from mmtune.common.files import is_file
from mmtune.common.hub import go_offline_if_unreachable, kept_files, undecoded_rows
from mmtune.data.images import EncodedImage
from mmtune.data.sources.image_paths import OutsideError, find_image
from mmtune.data.sources.tables import batches, open_parquet

if TYPE_CHECKING:
    from mmtune.evaluation.tasks.task import Task

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows that a task uses.

    Attributes:
        rows: (number in the split from 0, columns); photos as `EncodedImage` or None.
        fingerprint: SHA-256 over the values of the used columns of these rows, photos by their bytes. Rows
            from the hub and from any parquet file with these values have the same; another value, order or
            number of rows changes it.
    """

    rows: list[tuple[int, Row]]
    fingerprint: str


def load_rows(
    task: Task,
    data_root: Path | None,
    *,
    limit: int | None,
    keep: Callable[[int, Row], bool] = lambda _, __: True,
) -> RowSet:
    """Read the rows of a task.

    Args:
        task: whose rows.
        data_root: a folder with `hub/…`; None for the hub.
        limit: only the first so many of the rows kept.
        keep: which rows to keep, given number and columns.

    Raises:
        UserError: the file is missing, damaged or empty, a column is missing, or no row is kept.
    """
    source = _Source(task, data_root)
    images = _Images(task, data_root)
    columns = frozenset[str]().union(*task.columns_by_key().values())
    joined = _joined_images(task, source, images)

    def used() -> Iterator[tuple[int, Row]]:
        for number, raw in enumerate(source.read(task.dataset.config, columns)):
            row = {name: images.of(number, name, value) for name, value in raw.items()}
            if join := task.dataset.images:
                if row[join.on] not in joined:
                    where = source.describe(join.config)
                    raise UserError(f"{where}: no photo with {join.key} {row[join.on]!r}, which row {number} names")
                row[join.column] = joined[row[join.on]]
            if keep(number, row):
                yield number, row

    rows = list(itertools.islice(used(), limit))
    if not rows:
        reason = f"no row passes the filter of {task.where}" if task.filter else "holds no rows"
        raise UserError(f"{source.describe(task.dataset.config)}: {reason}")
    digest = hashlib.sha256()
    for _, row in rows:
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_canonical)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return RowSet(rows, digest.hexdigest())


def check_data(task: Task, data_root: Path | None) -> None:
    """Look whether a task's parquet files are there and have its columns, without reading the rows.

    Nothing is checked where the rows come from the hub.

    Raises:
        UserError: a file is missing, damaged or empty, or lacks a column.
    """
    source = _Source(task, data_root)
    if data_root is not None:
        configs = [task.dataset.config] + ([task.dataset.images.config] if task.dataset.images else [])
        for config in configs:
            source.check_columns(config, source.open_parquet(config).schema_arrow.names)


class _Source:
    """Where a task's configs are read."""

    def __init__(self, task: Task, data_root: Path | None) -> None:
        if data_root is not None and not data_root.is_dir():
            raise UserError(f"--data-root {data_root}: no such folder")
        self._task, self._root = task, data_root

    def describe(self, config: str | None) -> str:
        """The file, or the hub's address, of a config."""
        spec = self._task.dataset
        if self._root is not None:
            return str(self._root / "hub" / spec.path / (config or "default") / f"{spec.split}.parquet")
        return f"{spec.path} ({config or 'default'}, {spec.split})"

    def read(self, config: str | None, columns: frozenset[str]) -> Iterator[Row]:
        """The rows of a config with these columns, photos as {'bytes', 'path'}."""
        return self._from_hub(config, columns) if self._root is None else self._from_parquet(config, columns)

    def open_parquet(self, config: str | None) -> Any:
        """The opened parquet file of a config."""
        import pyarrow as pa

        path = self.describe(config)
        if not is_file(Path(path)):
            raise UserError(f"{path}: no such file, and task {self._task.name} needs it; put it there")
        try:
            file = open_parquet(path)
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: the name of a column is not UTF-8
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a readable parquet file ({reason}); download it again") from None
        if file.metadata.num_rows == 0:
            raise UserError(f"{path}: holds no rows; download it again")
        return file

    def check_columns(self, config: str | None, available: list[str]) -> None:
        """Raise a UserError if the task uses a column that this config does not have."""
        join = self._task.dataset.images
        needed = self._task.columns_by_key()
        if join is not None and config == join.config:
            needed = {f"dataset: images: {k}": frozenset({v}) for k, v in (("key", join.key), ("column", join.column))}
        for key, names in needed.items():
            for name in sorted(names - set(available)):
                problem = f"{self.describe(config)} has no column {name!r}; {did_you_mean(name, available)}"
                raise UserError(f"{self._task.where}: {key}: {problem}")

    def _from_parquet(self, config: str | None, columns: frozenset[str]) -> Iterator[Row]:
        import pyarrow as pa

        file = self.open_parquet(config)
        self.check_columns(config, file.schema_arrow.names)
        try:
            for batch in batches(file, sorted(columns)):
                yield from batch.to_pylist()
        # the last two: a text that is not UTF-8, a date that Python has not
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.describe(config)}: damaged ({reason}); download it again") from None

    def _from_hub(self, config: str | None, columns: frozenset[str]) -> Iterator[Row]:
        import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

        offline = go_offline_if_unreachable()
        from datasets import load_dataset

        spec = self._task.dataset
        try:
            data = load_dataset(spec.path, config, split=spec.split, revision=spec.revision)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            state = " (offline)" if offline else ""
            instead = f"--data-root DIR with hub/{spec.path}/{config or 'default'}/{spec.split}.parquet"
            problem = f"cannot be had from the Hugging Face hub{state}: {reason}; give {instead}"
            raise UserError(f"{self.describe(config)}: {problem}") from None
        self.check_columns(config, list(data.column_names))
        yield from undecoded_rows(data.select_columns(sorted(columns)))


class _Images:
    """Turns image cells into photos, each kept once however often it occurs."""

    def __init__(self, task: Task, data_root: Path | None) -> None:
        self._task, self._seen = task, dict[str, EncodedImage]()
        self._folders = kept_files() if data_root is None else (data_root,)

    def of(self, number: int, column: str, value: Any) -> Any:
        """The photo of an image cell; any other column's value as it is."""
        if value is None or column not in self._task.images:
            return value
        cell = value if isinstance(value, Mapping) else {}
        data = cell.get("bytes")
        if data is None and isinstance(name := cell.get("path"), str):
            data = self._from_file(number, column, name)
        if not isinstance(data, bytes):
            problem = f"row {number}: column {column!r} holds no photo ({{bytes, path}}) and is not null"
            raise UserError(f"{self._task.where}: images: {problem}")
        image = EncodedImage.of(data)
        return self._seen.setdefault(image.sha256, image)

    def _from_file(self, number: int, column: str, name: str) -> bytes | None:
        """A photo that is kept as a file, as the hub library does; None where there is none."""
        try:
            file = find_image(name, self._folders)
        except OutsideError as error:
            problem = f"row {number}: column {column!r}: the photo {brief(name, 200)} lies {error}"
            raise UserError(f"{self._task.where}: images: {problem}; put it there") from None
        return None if file is None else file.read_bytes()


def _joined_images(task: Task, source: _Source, images: _Images) -> dict[Any, EncodedImage | None]:
    join = task.dataset.images
    if join is None:
        return {}
    rows = source.read(join.config, frozenset({join.key, join.column}))
    return {row[join.key]: images.of(number, join.column, row[join.column]) for number, row in enumerate(rows)}


def _canonical(value: Any) -> str:
    """What JSON cannot write: photos and bytes by their digest, the rest (dates, decimals) as text."""
    if isinstance(value, EncodedImage):
        return f"photo:{value.sha256}"
    return f"bytes:{hashlib.sha256(value).hexdigest()}" if isinstance(value, bytes) else str(value)
