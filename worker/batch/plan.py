"""Cutting a long list of texts into requests: by items and tokens, identical texts once.

Where each text stood first is kept in a table on disk (SQLite, thrown away at the end), so that memory does not grow
with the list. The same lines under the same plan always give the same batches: that is how a retry knows them again.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from shared.batch import LineTooLong, read_line
from worker.model.calls import estimate_text_tokens

ANSWER_BYTES: Final = 1024 * 1024  # of one request's answer, about
FLOAT_JSON_BYTES: Final = 22  # of one number of a vector, at most: sign, 17 digits, point, exponent, comma
BASE64_BYTES: Final = 5.4
GUESSED_DIMENSIONS: Final = 1536  # when the job does not say
LEAST_ITEMS: Final = 16
LINES_PER_ITEM: Final = 4  # repeated and bad lines fill a batch too
DIGEST_BYTES: Final = 16
CACHE_KIB: Final = 32 * 1024


class Plan(msgspec.Struct, frozen=True):
    """The bounds of one batch: texts and tokens of its request, lines of its output; `answer_bytes` is a guess."""

    items: int
    tokens: int
    lines: int
    answer_bytes: int

    @classmethod
    def of(cls, dimensions: int | None, encoding: str, *, most_items: int, most_tokens: int) -> Plan:
        """A plan whose answers stay small, so that many can be under way."""
        per_number = FLOAT_JSON_BYTES if encoding == "float" else BASE64_BYTES
        per_item = round((dimensions or GUESSED_DIMENSIONS) * per_number)
        items = min(most_items, max(LEAST_ITEMS, ANSWER_BYTES // per_item))
        return cls(items, most_tokens, items * LINES_PER_ITEM, items * per_item)


class Entry(msgspec.Struct, frozen=True):
    """One line of the input. Exactly one of: `own`, its place among the batch's texts; `like`, the batch and the line
    where the same text stood first; `error`, why it cannot be embedded."""

    index: int
    id: str | None
    own: int | None = None
    like: tuple[int, int] | None = None
    error: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """The entries of one part of the output, and the texts of its request. `input_bytes` is the length of its lines."""

    number: int
    entries: list[Entry]
    texts: list[str]
    tokens: int
    input_bytes: int

    def identity(self, *more: object) -> bytes:
        """What the journal knows it by: all that its part depends on."""
        digest = hashlib.sha256(msgspec.json.encode([self.number, more]))
        for entry in self.entries:
            digest.update(msgspec.json.encode(entry))
        for text in self.texts:
            digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        return digest.digest()


class Planner:
    """Takes lines in their order, gives batches. For one thread at a time, but `close` may come from another: a task
    that is cancelled leaves its thread at work, and SQLite does not survive a table that is closed under its hands."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._at_work = threading.Lock()
        # Without a name it is a file that is gone from the directory at once: a killed worker leaves nothing.
        self._table = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "locking_mode=EXCLUSIVE"):
            self._table.execute(f"PRAGMA {pragma}")
        self._table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, batch INT, line INT) WITHOUT ROWID")
        self.lines = 0
        self._is_closed = False
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._entries: list[Entry] = []
        self._texts: list[str] = []
        self._tokens = 0
        self._bytes = 0

    def close(self) -> None:
        """Lets go of the table, when nobody is at work on it."""
        with self._at_work:
            self._table.close()
            self._is_closed = True

    def add(self, lines: Sequence[bytes | LineTooLong]) -> list[Batch]:
        """The batches that these lines fill."""
        done: list[Batch] = []
        with self._at_work:
            if self._is_closed:
                return done
            self._table.execute("BEGIN")
            for line in lines:
                self._add(line, done)
            self._table.execute("COMMIT")
        return done

    def rest(self) -> list[Batch]:
        """What is left at the end."""
        return [self._end()] if self._entries else []

    def _end(self) -> Batch:
        batch = Batch(self._number, self._entries, self._texts, self._tokens, self._bytes)
        self._number += 1
        self._begin()
        return batch

    def _add(self, line: bytes | LineTooLong, done: list[Batch]) -> None:
        """Puts a line into the batch; one that is full, or would have too many tokens with it, is `done` first."""
        index = self.lines
        self.lines += 1
        if isinstance(line, LineTooLong):
            self._bytes += line.size_bytes
            self._put(Entry(index, None, error=f"the line has {line.size_bytes} bytes; that is too long"), done)
            return
        self._bytes += len(line) + 1
        try:
            item = read_line(line)
        except ValueError as error:
            self._put(Entry(index, None, error=str(error)), done)
            return
        if not item.text.strip():
            self._put(Entry(index, item.id, error="the text is empty"), done)
            return
        encoded = item.text.encode("utf-8", "replace")
        digest = hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()
        tokens = estimate_text_tokens(item.text)
        if self._texts and self._tokens + tokens > self._plan.tokens:
            bytes_of_line = len(line) + 1
            self._bytes -= bytes_of_line
            done.append(self._end())
            self._bytes += bytes_of_line
        here = (self._number, len(self._entries))
        added = self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (digest, *here))
        if added.rowcount == 0:
            like = self._table.execute("SELECT batch, line FROM seen WHERE digest = ?", (digest,)).fetchone()
            self._put(Entry(index, item.id, like=like), done)
            return
        self._tokens += tokens
        self._texts.append(item.text)
        self._put(Entry(index, item.id, own=len(self._texts) - 1), done)

    def _put(self, entry: Entry, done: list[Batch]) -> None:
        self._entries.append(entry)
        plan = self._plan
        if len(self._texts) >= plan.items or len(self._entries) >= plan.lines or self._tokens >= plan.tokens:
            done.append(self._end())
