"""The local store, written: one SQLite file in WAL mode for the spans of all services and processes of a user.

Bounded in size, and safe to delete at any time. A file that is something else, or of another version, is not touched.
The reading side is in `stored.py`; its functions can be had from here too.
"""

from __future__ import annotations

import sqlite3

from .output import Loss, Outcome
from .rows import clean, cleaned_row, resource_text, row
from .store_file import StoreFile
from .stored import StoredSpan, StoreError, TraceSummary, read_trace, read_traces, what_is_wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Store", "StoreError", "StoredSpan", "TraceSummary", "read_trace", "read_traces"]

INSERT = "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Store:
    """Writes batches of spans, each in one transaction, by a connection that is this process's own.

    `max_bytes` bounds the file: when it is reached, the traces that began first are deleted, a tenth at a time. `run`
    marks the spans as those of one `sw-python run`.
    """

    waits = False

    def __init__(self, path: str, max_bytes: int, run: str | None = None) -> None:
        self._max_bytes = max_bytes
        self._run = run
        self._file = StoreFile(path)

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:  # noqa: ARG002
        """Write one batch; what SQLite says against it is the reason of the loss."""
        try:
            self._file.write(lambda database: self._insert(database, spans), until)
        except (sqlite3.Error, StoreError, OSError) as error:
            detail = what_is_wrong(self._file.path, error)
            outcome.losses.append(Loss(len(spans), "not written to the local store", detail))
        outcome.done = len(spans)

    def end_round(self, until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Close the file."""
        self.close()
        return Outcome()

    def standby(self) -> Store:
        """Return another one, with a connection of its own."""
        return Store(self._file.path, self._max_bytes, self._run)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _insert(self, database: sqlite3.Connection, spans: Sequence[ReadableSpan]) -> None:
        ids = _resource_ids(database, spans)
        try:
            rows = [row(span, ids[id(span.resource)], self._run) for span in spans]
        except (ValueError, TypeError, OverflowError, RecursionError):
            rows = [cleaned_row(span, ids[id(span.resource)], self._run) for span in spans]
        database.executemany(INSERT, rows)
        if _size(database) > self._max_bytes:
            _delete_oldest(database)


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
    """Return how many bytes the spans take; the spool has a bound of its own."""
    pages, free, page_size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    (spooled,) = database.execute("SELECT coalesce(sum(length(body)), 0) FROM spool").fetchone()
    return int((pages - free) * page_size - spooled)


def _delete_oldest(database: sqlite3.Connection) -> None:
    (count,) = database.execute("SELECT COUNT(*) FROM spans").fetchone()
    begun_first = "SELECT trace_id FROM spans ORDER BY start_ns LIMIT ?"
    database.execute(f"DELETE FROM spans WHERE trace_id IN ({begun_first})", (count // 10 + 1,))
    database.execute("DELETE FROM resources WHERE id NOT IN (SELECT resource_id FROM spans)")
    database.execute("PRAGMA incremental_vacuum").fetchall()
