"""Answers as they come in, in `DIR/answers.sqlite`: what a kill cannot take."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmtune.common.errors import UserError
from mmtune.common.files import parse_json
from mmtune.common.schema import validate
from mmtune.evaluation.run.load_model import COSTS
from mmtune.evaluation.run.requests import Answer

LAYOUT = 3
_FIELDS = {field.name for field in dataclasses.fields(Answer)}
_LARGEST = 2**26  # bytes of one answer
_BUSY_SECONDS = 60.0  # how long a process waits for another one that is writing

_TABLES = f"""
CREATE TABLE IF NOT EXISTS chunks (
    key TEXT NOT NULL, chunk INTEGER NOT NULL, {", ".join(f"{name} REAL NOT NULL" for name in COSTS)},
    PRIMARY KEY (key, chunk)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL, row INTEGER NOT NULL, sample INTEGER NOT NULL, answer TEXT NOT NULL,
    PRIMARY KEY (key, row, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Database:
    """The answers of one folder. Every chunk is there whole, with what it cost, or not at all.

    A key stands for all that the answers of a task depend on; see `engine`. Several processes of one machine may use
    the file at once: that is what the write-ahead log is for. Every commit waits until the disk has it
    (`synchronous=FULL`): a few milliseconds beside a chunk's seconds, for which answers outlive a power cut too.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, or make it.

        Args:
            path: the file; None keeps the answers in memory.

        Raises:
            UserError: it is damaged, of another layout, in use, or cannot be made.
        """
        self._path = path
        with self._explained():
            self._connection = sqlite3.connect(path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None)
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
            self._connection.execute("PRAGMA trusted_schema=OFF")
            layout = self._one("PRAGMA user_version")
            if layout not in (0, LAYOUT):
                problem = f"written by another version of mmtune (layout {layout}, not {LAYOUT})"
                raise UserError(f"{path}: {problem}; choose another --out, or delete the file to ask again")
            self._check_schema()
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if self._one("PRAGMA quick_check(1)") != "ok":
                raise self._damaged("the check finds broken pages")
            self._connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={LAYOUT}; COMMIT")

    def _check_schema(self) -> None:
        """Refuse a file with more than our own tables in it, or with others by their names.

        Views, triggers, computed columns and checks are programs that SQLite runs when the file is read or written, the
        check of its pages included.
        """
        # as bytes: of a text that is not UTF-8, sqlite3 itself would only say that it cannot decode it
        columns = ", ".join(f"CAST({name} AS BLOB)" for name in ("type", "name", "tbl_name", "sql"))
        schema = f"SELECT {columns} FROM sqlite_schema"
        own = sqlite3.connect(":memory:")
        own.executescript(_TABLES)
        expected = set(own.execute(schema))
        own.close()
        found = set(self._connection.execute(schema)) - expected
        if strange := sorted((name or b"").decode(errors="replace") for _, name, *_ in found):
            raise self._damaged(f"it holds {strange[0]!r}, which is no table of answers")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def chunks(self, key: str) -> set[int]:
        """The numbers of the chunks that are answered."""
        with self._explained():
            return {number for (number,) in self._connection.execute("SELECT chunk FROM chunks WHERE key=?", [key])}

    def rows(self, key: str) -> int:
        """How many questions are answered."""
        with self._explained():
            return int(self._one("SELECT count(*) FROM answers WHERE key=? AND sample=0", key))

    def add(self, key: str, chunk: int, answers: Sequence[Answer], cost: Mapping[str, float]) -> None:
        """Store a chunk, unless another process has stored it meanwhile.

        Raises:
            UserError: the disk is full or does not let us write; what is stored already stays.
        """
        with self._explained(), self._transaction():
            places = ", ".join("?" * (2 + len(COSTS)))
            row = [key, chunk, *(cost[name] for name in COSTS)]
            if self._connection.execute(f"INSERT OR IGNORE INTO chunks VALUES ({places})", row).rowcount:
                lines = ((key, one.row, one.sample, json.dumps(dataclasses.asdict(one))) for one in answers)
                self._connection.executemany("INSERT INTO answers VALUES (?, ?, ?, ?)", lines)

    def answers(self, key: str) -> dict[tuple[int, int], Answer]:
        """All answers, by row and sample.

        Raises:
            UserError: an answer is damaged.
        """
        with self._explained():
            # as bytes: of a text that is not UTF-8, sqlite3 itself would only say that it cannot decode it
            query = "SELECT row, sample, CAST(answer AS BLOB) FROM answers WHERE key=?"
            try:
                found = self._connection.execute(query, [key])
                return {(row, sample): _answer(row, sample, text) for row, sample, text in found}
            except (UserError, ValueError):
                raise self._damaged("an answer cannot be read") from None

    def cost(self, key: str) -> dict[str, float]:
        """What the chunks cost together."""
        sums = ", ".join(f"total({name})" for name in COSTS)
        with self._explained():
            totals = self._connection.execute(f"SELECT {sums} FROM chunks WHERE key=?", [key]).fetchone()
        seconds, *counts = totals
        return {"seconds": round(seconds, 3), **dict(zip(COSTS[1:], map(int, counts), strict=True))}

    def forget(self, key: str) -> None:
        """Drop the answers of a key."""
        with self._explained(), self._transaction():
            for table in ("chunks", "answers"):
                self._connection.execute(f"DELETE FROM {table} WHERE key=?", [key])

    def noted(self, name: str) -> str | None:
        """What was noted of the evaluation under a name, or None."""
        with self._explained():
            found = self._connection.execute("SELECT value FROM notes WHERE name=?", [name]).fetchone()
        return None if found is None else str(found[0])

    def note(self, name: str, value: str) -> None:
        """Note something of the evaluation, in place of what was noted under the name."""
        with self._explained(), self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [name, value])

    def _one(self, query: str, *values: str) -> str | int:
        value: str | int = self._connection.execute(query, values).fetchone()[0]
        return value

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do about what SQLite complains of."""
        try:
            yield
        except UnicodeDecodeError:  # of SQLite's own message, which quotes the file
            raise self._damaged("SQLite cannot read it") from None
        except sqlite3.Error as error:
            kind = getattr(error, "sqlite_errorname", None) or ""
            if kind == "SQLITE_FULL":
                advice = "free some space and run the same command again, it goes on where it stopped"
                raise UserError(f"{self._path}: the disk is full; {advice}") from None
            if kind.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_TOOBIG")):
                raise self._damaged(str(error)) from None
            if kind.startswith("SQLITE_BUSY"):
                raise UserError(f"{self._path}: another process has kept it locked; wait for it or stop it") from None
            if kind.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR")):
                advice = "check the folder's permissions and its disk, or choose another --out"
                raise UserError(f"{self._path}: cannot be read or written ({error}); {advice}") from None
            raise

    def _damaged(self, how: str) -> UserError:
        advice = "delete it to ask everything again, or choose another --out"
        return UserError(f"{self._path}: damaged ({how}); {advice}")


def _answer(row: int, sample: int, text: bytes) -> Answer:
    """The answer to a row, as it was stored.

    Raises:
        UserError, ValueError: it is something else.
    """
    fields = parse_json(text.decode())
    answer = validate(Answer, fields, "answer")
    if (answer.row, answer.sample) != (row, sample) or fields.keys() != _FIELDS:
        raise ValueError("no answer to this row")
    return answer
