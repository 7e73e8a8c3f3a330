"""Disk cache of tokenized rows, which later runs memory-map instead of tokenizing the rows again.

Every combination of tokenizer, template, tokens per image and code version has a folder below `cache_dir()/tokens`.
A run with new rows writes Arrow IPC files there, with the columns of `_schema`. The name of a file is the SHA-256 of
its bytes: processes that write the same rows at the same time write the same file, and a damaged file is detected.
The folder may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from mmtune.common.disk import scratch_folder
from mmtune.common.errors import RowError
from mmtune.common.files import cache_dir, sha256_file, sha256_json
from mmtune.data import conversation as conversation_module
from mmtune.data import encoding
from mmtune.data.conversation import IMAGE_PLACEHOLDER, Conversation
from mmtune.data.encoding import ModelInputs, Tokens, tokenise
from mmtune.data.rendering import layouts, template_faults, templates, turn_ends
from mmtune.interfaces import Turn

_FILE = 2**16  # rows that are kept in memory until they are written; only a killed process loses them
_CODE = (
    conversation_module,
    encoding,
    templates,
    layouts,
    template_faults,
    turn_ends,
    sys.modules[__name__],
)  # the code that decides the tokens
_BATCH = 2**12  # rows written at a time, so that writing needs little memory


@contextmanager
def cached_tokens(inputs: ModelInputs, *, use: bool = True) -> Iterator[Callable[[Conversation], Tokens]]:
    """Yield a function that returns a conversation's tokens, as `tokenise` does; new ones are saved on exit.

    Args:
        inputs: tokenizer, template and tokens per photo.
        use: False makes all tokens anew and saves none.
    """
    # changes to a template that is defined outside `templates` are not detected here
    if not use or inputs.template.write.__module__ != templates.__name__:
        yield functools.partial(tokenise, inputs=inputs)
        return
    cache = TokenCache(inputs)
    try:
        yield cache.tokens
    finally:  # also when a row stops the run: the rows before it need not be tokenized again
        cache.save()


class TokenCache:
    """Token cache for one combination of tokenizer, template and tokens per image.

    A folder that cannot be written to is no error; `save` prints a message to stderr.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        self.inputs = inputs
        self.new: dict[bytes, Tokens] = {}
        self._keeps = True
        self.folder: Path | None = None
        with suppress(RuntimeError):  # there is no home folder
            self.folder = cache_dir() / "tokens" / fingerprint(inputs)
        self._batches = list(_batches(self.folder)) if self.folder else []
        # sorted, for 16 bytes a row where a dict would take 150
        starts = [batch.key_starts for batch in self._batches] or [np.empty(0, dtype=np.int64)]
        places = [(n << 32) + np.arange(len(one), dtype=np.int64) for n, one in enumerate(starts)]
        order = np.argsort(np.concatenate(starts), kind="stable")
        self._key_starts, self._places = np.concatenate(starts)[order], np.concatenate(places)[order]

    def tokens(self, conversation: Conversation) -> Tokens:
        """Return the conversation's tokens: read-only views of a memory-mapped file, or newly made arrays.

        Raises:
            RowError: see `tokenise`.
        """
        key = row_key(conversation)
        found = self.new.get(key) or self._stored(key)
        if found is None:
            found = tokenise(conversation, self.inputs)
            if self._keeps:
                self.new[key] = found
            if len(self.new) == _FILE:
                self.save()
        return found

    def save(self) -> None:
        """Write the new rows to one file, completely or not at all, and remove them from memory."""
        if not self.new:
            return
        try:
            if self.folder is None:
                raise OSError("there is no home folder")
            _write(self.folder, self.new)
        except OSError as error:
            self._keeps = False
            print(
                f"The tokens are not kept for later runs: {self.folder or 'cache'}: {error.strerror or error}; "
                "MMTUNE_CACHE names another folder, --data.cache_tokens false does without.",
                file=sys.stderr,
            )
        self.new.clear()

    def _stored(self, key: bytes) -> Tokens | None:
        start = np.frombuffer(key, dtype="<i8", count=1)[0]
        for at in range(int(self._key_starts.searchsorted(start)), len(self._key_starts)):
            if self._key_starts[at] != start:
                break
            batch, row = divmod(int(self._places[at]), 1 << 32)
            if (found := self._batches[batch].row(row, key)) is not None:
                return found
        return None


def fingerprint(inputs: ModelInputs) -> str:
    """Return a hash of everything that decides the tokens except the conversation itself."""
    # what a template writes may depend on more than its text: some write today's date
    probe = Conversation((Turn("user", f"{IMAGE_PLACEHOLDER}\na"), Turn("assistant", "b")), (b"",), "probe", 1)
    try:
        rendered = inputs.template.render(probe).text
    except RowError as error:
        rendered = str(error)
    tokenizer, template = inputs.tokenizer, inputs.template
    # tokenized before the backend is serialized, because this removes the padding that a caller left in it
    probed = tokenizer(rendered)["input_ids"]
    return sha256_json(
        [
            [inspect.getsource(module) for module in _CODE],
            [tokenizers.__version__, transformers.__version__],
            [type(tokenizer).__name__, *encoding.tokenizer_content(tokenizer)],
            [template.source, template.default_system],
            [template.name, inputs.tokens_per_image, rendered, probed],
        ]
    )[:32]


def row_key(conversation: Conversation) -> bytes:
    """Return a 16-byte hash of the turns; images do not count, only their marks in the text."""
    digest = hashlib.blake2b(digest_size=16)
    for turn in conversation.turns:
        text = turn.text.encode()
        digest.update(f"{turn.role} {turn.supervised:d}{turn.thought:d} {len(text)} ".encode())
        digest.update(text)
    return digest.digest()


class _File:
    """Memory-mapped file that is checked when its first row is read."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path, self.content = path, content

    @functools.cached_property
    def sound(self) -> bool:
        """Whether the content is what was written; a damaged file is deleted, and its rows are written again later."""
        if hashlib.sha256(self.content).hexdigest() == self.path.stem:
            return True
        with suppress(OSError):
            self.path.unlink()
        return False


class _Batch:
    """Record batch of a file: some of its rows."""

    def __init__(self, file: _File, batch: Any) -> None:
        batch.validate()  # no column may reach beyond its file; `_File.sound` checks the content
        keys, self._ids, self._learnt = batch.columns
        self._file, self._offsets = file, self._ids.offsets.to_numpy()
        self._keys = np.frombuffer(keys.buffers()[1], dtype="<i8", count=2 * len(keys)).reshape(-1, 2)
        self.key_starts: np.ndarray = self._keys[:, 0]

    @functools.cached_property
    def _values(self) -> Tokens:
        ids: np.ndarray = self._ids.values.to_numpy()
        return ids, self._learnt.values.to_numpy().view(bool)

    def row(self, number: int, key: bytes) -> Tokens | None:
        """Return the tokens of a row, or None if it has another key or its file is damaged."""
        if not self._file.sound or self._keys[number].tobytes() != key:
            return None
        ids, learnt = self._values
        span = slice(self._offsets[number], self._offsets[number + 1])
        return ids[span], learnt[span]


def _batches(folder: Path) -> Iterator[_Batch]:
    """Yield the batches of the files in the folder; skip files of another schema, and delete unreadable ones."""
    import pyarrow as pa

    for path in sorted(folder.glob("*.arrow")):
        try:
            content = pa.memory_map(str(path)).read_buffer()
            file, reader = _File(path, content), pa.ipc.open_file(content)
            if reader.schema == _schema():
                batches = [_Batch(file, reader.get_batch(i)) for i in range(reader.num_record_batches)]
            else:
                batches = []
        except (pa.ArrowException, OSError, ValueError):
            with suppress(OSError):
                path.unlink()
        else:
            yield from batches


def _write(folder: Path, rows: dict[bytes, Tokens]) -> None:
    import pyarrow as pa

    items = iter(rows.items())
    with scratch_folder(folder, "rows") as scratch:
        path = scratch / "rows"
        with pa.ipc.new_file(str(path), _schema()) as writer:
            while some := list(islice(items, _BATCH)):
                writer.write_batch(_columns(some))
        path.replace(folder / f"{sha256_file(path)}.arrow")


def _columns(items: Sequence[tuple[bytes, Tokens]]) -> Any:
    import pyarrow as pa

    ids, learnt = zip(*(tokens for _, tokens in items), strict=True)
    offsets = pa.array(np.cumsum([0, *map(len, ids)]), pa.int64())
    columns = [
        pa.array([key for key, _ in items], pa.binary(16)),
        pa.LargeListArray.from_arrays(offsets, np.concatenate(ids)),
        pa.LargeListArray.from_arrays(offsets, np.concatenate(learnt).view(np.uint8)),
    ]
    return pa.record_batch(columns, schema=_schema())


def _schema() -> Any:
    """Return the schema; `supervised` takes a byte per token, since numpy cannot view Arrow's booleans (bits)."""
    import pyarrow as pa

    return pa.schema(
        {"key": pa.binary(16), "input_ids": pa.large_list(pa.int32()), "supervised": pa.large_list(pa.uint8())}
    )
