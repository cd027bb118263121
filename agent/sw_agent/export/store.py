"""The local store, written: one SQLite file in WAL mode for the spans of all services and processes of a user.

Bounded in size, and safe to delete at any time. A file that is something else, or of another version, is not touched.
The reading side is in `stored.py`; its functions can be had from here too.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from .pipeline import Loss
from .rows import clean, cleaned_row, resource_text, row
from .stored import (
    APPLICATION_ID,
    VERSION,
    StoredSpan,
    StoreError,
    TraceSummary,
    check_file,
    is_ours,
    read_trace,
    read_traces,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Store", "StoreError", "StoredSpan", "TraceSummary", "read_trace", "read_traces"]

OPENING_PATIENCE = 2.0  # seconds to wait for another process that makes the file, at most
BREATH = 0.001  # seconds between two batches, and between two looks whether another process has finished its own

SCHEMA = """
CREATE TABLE resources (id INTEGER PRIMARY KEY, service TEXT NOT NULL, attributes TEXT NOT NULL UNIQUE);
CREATE TABLE spans (
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT, name TEXT NOT NULL, kind TEXT NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, status TEXT NOT NULL, status_description TEXT NOT NULL,
    attributes TEXT NOT NULL, events TEXT NOT NULL, links TEXT NOT NULL,
    resource_id INTEGER NOT NULL, scope TEXT NOT NULL, run TEXT);
CREATE INDEX spans_by_trace ON spans (trace_id, start_ns, end_ns, status);
CREATE INDEX spans_by_start ON spans (start_ns, trace_id);
CREATE INDEX spans_by_run ON spans (run) WHERE run IS NOT NULL;
"""
INSERT = "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Store:
    """Writes batches of spans, each in one transaction, by a connection that is this process's own.

    `max_bytes` bounds the file: when it is reached, the traces that began first are deleted, a tenth at a time. `run`
    marks the spans as those of one `sw-python run`. `patience` is how long to wait for other writers, in seconds.
    """

    def __init__(self, path: str, max_bytes: int, run: str | None = None, patience: float = 5.0) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._run = run
        self._patience = patience
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of what is open

    def send(self, spans: Sequence[ReadableSpan]) -> list[Loss]:
        """Write one batch; what SQLite says against it is the reason of the loss."""
        deadline = monotonic() + self._patience
        while True:
            try:
                self._write(spans)
            except (sqlite3.Error, StoreError, OSError) as error:
                if not _is_locked(error) or monotonic() > deadline:
                    self.close()
                    return [Loss(len(spans), "not written to the local store", _said(self._path, error))]
                sleep(BREATH)
            else:
                sleep(BREATH)  # or who has much to write would leave no gap for the others
                return []

    def close(self) -> None:
        """Close the file."""
        database, self._database = self._database, None
        if database is not None:
            # What was committed is safe; where closing fails, the next one to open the file does the rest.
            with suppress(sqlite3.Error):
                database.close()

    def _write(self, spans: Sequence[ReadableSpan]) -> None:
        if self._database is not None and self._file != _identity(self._path):
            self.close()  # somebody has deleted or replaced it
        if self._database is None:
            self._database = _open(self._path, min(self._patience, OPENING_PATIENCE))
            self._file = _identity(self._path)
        database = self._database
        with _transaction(database):
            ids = _resource_ids(database, spans)
            try:
                rows = [row(span, ids[id(span.resource)], self._run) for span in spans]
            except (ValueError, TypeError, OverflowError, RecursionError):
                rows = [cleaned_row(span, ids[id(span.resource)], self._run) for span in spans]
            database.executemany(INSERT, rows)
            if _size(database) > self._max_bytes:
                _delete_oldest(database)


def _open(path: str, patience: float) -> sqlite3.Connection:
    """Open the store, made with its folder where there is none.

    Raises:
        StoreError: the file is something else, or of another version.
        sqlite3.Error, OSError: it cannot be opened or written.
    """
    check_file(path)
    _create_file(path)
    # Isolation level None: transactions are begun by hand. One thread at a time uses the connection, not always one.
    database = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        if not is_ours(database, path):
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect before the first table only
            with _transaction(database):
                if not is_ours(database, path):  # another process may have been faster
                    for statement in SCHEMA.split(";"):
                        database.execute(statement)
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        # NORMAL: a crash of the process loses nothing, one of the machine the last transactions, never the file.
        database.execute("PRAGMA synchronous = NORMAL")
        # SQLite's own way to wait looks ten times a second: not often enough to find the gap that a busy writer leaves.
        database.execute("PRAGMA busy_timeout = 0").fetchall()
    except BaseException:
        database.close()
        raise
    return database


def _create_file(path: str) -> None:
    """Make the file, readable by its owner only, unless it exists.

    A log that a deleted store has left behind would be replayed into the new one, so it is deleted first; under a lock,
    because the next process to come may have begun a new log already.
    """
    if os.path.exists(path):
        return
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with _locked_folder(folder):
        if os.path.exists(path):
            return
        for leftover in (f"{path}-wal", f"{path}-shm"):
            try:
                os.unlink(leftover)
            except FileNotFoundError:  # the usual case
                continue
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@contextmanager
def _locked_folder(folder: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: there a file that is in use cannot be deleted
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _resource_ids(database: sqlite3.Connection, spans: Sequence[ReadableSpan]) -> dict[int, int]:
    """Return the row of each resource by the object's id; looked up anew for each batch, since rows are deleted too."""
    ids = {}
    for resource in {id(span.resource): span.resource for span in spans}.values():
        text = resource_text(resource)
        service = str(clean(resource.attributes.get("service.name", "")))
        database.execute("INSERT OR IGNORE INTO resources (service, attributes) VALUES (?, ?)", (service, text))
        (ids[id(resource)],) = database.execute("SELECT id FROM resources WHERE attributes = ?", (text,)).fetchone()
    return ids


def _size(database: sqlite3.Connection) -> int:
    pages, free, page_size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_size)


def _delete_oldest(database: sqlite3.Connection) -> None:
    (count,) = database.execute("SELECT COUNT(*) FROM spans").fetchone()
    begun_first = "SELECT trace_id FROM spans ORDER BY start_ns LIMIT ?"
    database.execute(f"DELETE FROM spans WHERE trace_id IN ({begun_first})", (count // 10 + 1,))
    database.execute("DELETE FROM resources WHERE id NOT IN (SELECT resource_id FROM spans)")
    database.execute("PRAGMA incremental_vacuum").fetchall()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # deleted
        return None
    return status.st_dev, status.st_ino


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _said(path: str, error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else f"{path}: {error}"
