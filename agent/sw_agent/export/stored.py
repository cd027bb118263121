"""The local store, read: the list of traces, and the spans of one. Others may write to it meanwhile."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID = 0x53575059  # "SWPY": tells the store from other programs' SQLite files
VERSION = 1
MAGIC = b"SQLite format 3\0"


class StoreError(Exception):
    """The store cannot be used; the message says to a person which file it is and why."""


class TraceSummary(NamedTuple):
    """A line of the list of traces; `service` and `root_name` are those of its root, else of its first span."""

    trace_id: str
    service: str
    root_name: str
    start_ns: int
    duration_ns: int
    spans: int
    errors: int


class Spooled(NamedTuple):
    """What of one service waits in the spool for its collector."""

    service: str
    endpoint: str
    spans: int
    bytes: int
    oldest_ns: int


class StoredSpan(NamedTuple):
    """A span as it is kept: ids in hexadecimal digits, times in nanoseconds since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    start_ns: int
    end_ns: int
    status: str
    status_description: str
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    links: list[dict[str, Any]]
    resource: dict[str, Any]
    scope: str
    run: str | None


def read_traces(
    path: str,
    *,
    limit: int = 20,
    service: str | None = None,
    name: str | None = None,
    min_duration_ms: float | None = None,
    errors_only: bool = False,
    since_ns: int | None = None,
    run: str | None = None,
) -> list[TraceSummary]:
    """Return the traces that began last, the newest first.

    `service` is one that took part, `name` a part of the name of one of the spans, in upper or lower case. A trace has
    errors where one of its spans has status ERROR.

    Raises:
        StoreError: there is no such file, it is no store of this version, or it cannot be read.
    """
    conditions = {
        "trace_id IN (SELECT trace_id FROM spans JOIN resources ON resource_id = id WHERE service = ?)": service,
        "trace_id IN (SELECT trace_id FROM spans WHERE instr(lower(name), lower(?)))": name,
        "trace_id IN (SELECT trace_id FROM spans WHERE run = ?)": run,
    }
    groups = {"MIN(start_ns) >= ?": since_ns, "MAX(end_ns) - MIN(start_ns) >= ? * 1000000": min_duration_ms}
    where = " AND ".join(text for text, value in conditions.items() if value is not None) or "1"
    having = " AND ".join(text for text, value in groups.items() if value is not None) or "1"
    if errors_only:
        having += " AND SUM(status = 'ERROR')"
    values = [value for value in (*conditions.values(), *groups.values()) if value is not None]
    with _reading(path) as database:
        found = database.execute(
            "SELECT trace_id, MIN(start_ns) AS first, MAX(end_ns) - MIN(start_ns), COUNT(*), SUM(status = 'ERROR')"
            f" FROM spans WHERE {where} GROUP BY trace_id HAVING {having} ORDER BY first DESC LIMIT ?",
            (*values, limit),
        ).fetchall()
        return [
            TraceSummary(trace_id, *_root(database, trace_id), start_ns, duration_ns, spans, errors)
            for trace_id, start_ns, duration_ns, spans, errors in found
        ]


def read_trace(path: str, trace_id: str) -> list[StoredSpan]:
    """Return the spans of one trace in the order of their starts.

    `trace_id` is the id, the beginning of it, or "last" for the trace that began last.

    Raises:
        StoreError: as `read_traces`; and where no trace, or more than one, has an id that begins so.
    """
    if trace_id == "last":
        newest = read_traces(path, limit=1)
        if not newest:
            raise StoreError(f"{path}: there is no trace yet")
        trace_id = newest[0].trace_id
    prefix = trace_id.lower()
    with _reading(path) as database:
        ids = database.execute(
            "SELECT DISTINCT trace_id FROM spans WHERE trace_id >= ? AND trace_id < ? LIMIT 3", (prefix, prefix + "g")
        ).fetchall()
        if len(ids) != 1:
            raise StoreError(f"{path}: {'more than one' if ids else 'no'} trace has an id that begins with {trace_id}")
        rows = database.execute(
            "SELECT trace_id, span_id, parent_id, name, kind, start_ns, end_ns, status, status_description,"
            " spans.attributes, events, links, coalesce(resources.attributes, '{}'), scope, run"
            " FROM spans LEFT JOIN resources ON resource_id = id WHERE trace_id = ? ORDER BY start_ns, spans.rowid",
            ids[0],
        )
        return [StoredSpan(*row[:9], *map(json.loads, row[9:13]), *row[13:]) for row in rows]


def read_spool(path: str) -> list[Spooled]:
    """Return what waits for collectors, by service; the longest waiting first.

    Raises:
        StoreError: as `read_traces`.
    """
    with _reading(path) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'spool'").fetchone():
            return []  # a store from before there was one
        rows = database.execute(
            "SELECT service, endpoint, sum(spans), sum(length(body)), min(put_ns) AS oldest FROM spool"
            " GROUP BY service, endpoint ORDER BY oldest"
        )
        return [Spooled(*row) for row in rows]


def check_file(path: str) -> None:
    """Look at the file before SQLite does, which takes a short one for empty and overwrites it.

    Not while this process has it open: closing it here would end SQLite's locks (POSIX).

    Raises:
        StoreError: there is something at `path` that is no SQLite file, and not empty.
        OSError: it cannot be read.
    """
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise StoreError(f"{path} is no file; choose another export.path")
        with open(path, "rb") as file:
            begin = file.read(len(MAGIC))
        if begin not in (b"", MAGIC):
            raise StoreError(f"{path} is no SQLite database; move it away, or choose another export.path")


def what_is_wrong(path: str, error: Exception) -> str:
    """Return what an exception says against the file at `path`."""
    return str(error) if isinstance(error, StoreError) else f"{path}: {error}"


def is_ours(database: sqlite3.Connection, path: str) -> bool:
    """Return whether the database is a store of this version, False where it is empty.

    Raises:
        StoreError: it is something else; nothing has been changed.
    """
    # In one statement, hence of one moment: another process may be creating the store.
    application, version, tables = database.execute(
        "SELECT application_id, user_version, (SELECT COUNT(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if (application, version) == (APPLICATION_ID, VERSION):
        return True
    if application == APPLICATION_ID:
        raise StoreError(
            f"{path} was written by another version of sw-python (format {version}, not {VERSION}); delete it"
        )
    if application or version or tables:
        raise StoreError(f"{path} is a database of another program; choose another export.path")
    return False


@contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    """Open the store for reading; what SQLite says against it, then or later, is a `StoreError`."""
    if not os.path.exists(path):
        raise StoreError(f"{path} does not exist: no span has been recorded there yet")
    try:
        check_file(path)
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=5.0)) as database:
            if not is_ours(database, path):
                raise StoreError(f"{path} is empty: no span has been recorded there yet")
            yield database
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: {error}") from error


def _root(database: sqlite3.Connection, trace_id: str) -> tuple[str, str]:
    """Return service and name of the trace's root: the first span without a parent, else the first one."""
    found = database.execute(
        "SELECT coalesce(service, ''), name FROM spans LEFT JOIN resources ON resource_id = id"
        " WHERE trace_id = ? ORDER BY parent_id IS NOT NULL, start_ns LIMIT 1",
        (trace_id,),
    ).fetchone()
    return found[0], found[1]
