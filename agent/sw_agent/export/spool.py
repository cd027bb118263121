"""The spool: requests that the collector has not taken, in the local store's file, until it does.

Whichever process of the same service sends next sends them too, each once: who takes a request out marks it as taken,
and deletes it when the collector has it. Bounded in size and age; what came first goes first.
"""

from __future__ import annotations

import os
import sqlite3
from time import time_ns
from typing import NamedTuple

from .encoding import Request
from .output import Loss
from .store_file import StoreFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LEASE = 120 * 10**9  # nanoseconds after which what somebody has taken, and neither sent nor given back, is free again
SMALL = 2**16  # bytes up to which a request is put together with the one before
FREE = f"taken_ns NOT BETWEEN ? - {LEASE} AND ?"


class Taken(NamedTuple):
    """A request that this process sends; `id` is its row."""

    id: int
    spans: int
    body: bytes


class Spool:
    """The requests of one service, in the file at `path`; of `max_bytes` together, and `max_age` seconds old, at most.

    Everything here raises StoreError, sqlite3.Error or OSError where the file cannot be used.
    """

    def __init__(self, path: str, service: str, max_bytes: int, max_age: float) -> None:
        self._file = StoreFile(path)
        self._service = service
        self._max_bytes = max_bytes
        self._max_age_ns = int(max_age * 1e9)

    @property
    def path(self) -> str:
        """The file."""
        return self._file.path

    def put(self, request: Request, until: float) -> tuple[bool, list[Loss]]:
        """Keep a request; return whether it has room here, and what had to go for it."""
        return self._file.write(lambda database: self._put(database, request), until)

    def next(self, sent: Taken | None, until: float) -> Taken | None:
        """Delete what has been sent, and take the oldest request that nobody else is sending."""
        if not os.path.exists(self.path):
            return None
        try:
            return self._file.write(lambda database: self._next(database, sent), until)
        finally:
            self.close()  # whoever sends may hang, and a process that is forked meanwhile must not inherit a connection

    def give_back(self, taken: Taken, until: float) -> None:
        """Put back what could not be sent."""
        self._file.write(
            lambda database: database.execute("UPDATE spool SET taken_ns = 0 WHERE id = ?", (taken.id,)), until
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, database: sqlite3.Connection, request: Request) -> tuple[bool, list[Loss]]:
        if len(request.body) > self._max_bytes:
            return False, []
        now = time_ns()
        losses = self._make_room(database, len(request.body), now)
        last = database.execute(
            "SELECT id, body FROM spool WHERE id = (SELECT max(id) FROM spool) AND service = ? AND length(body) < ?"
            f" AND {FREE}",
            (self._service, SMALL, now, now),
        ).fetchone()
        if last is not None:  # two messages of protobuf, one after the other, are one with the fields of both
            database.execute(
                "UPDATE spool SET spans = spans + ?, body = ? WHERE id = ?",
                (request.spans, last[1] + request.body, last[0]),
            )
        else:
            database.execute(
                "INSERT INTO spool (service, put_ns, spans, body) VALUES (?, ?, ?, ?)",
                (self._service, now, request.spans, request.body),
            )
        return True, losses

    def _make_room(self, database: sqlite3.Connection, size: int, now: int) -> list[Loss]:
        """Delete what is too old, of whatever service, and then of the oldest as much as takes the room of `size`."""
        free = f"SELECT id, spans, length(body) FROM spool WHERE {FREE}"
        old = database.execute(f"{free} AND put_ns < ?", (now, now, now - self._max_age_ns)).fetchall()
        _delete(database, old)
        (total,) = database.execute("SELECT coalesce(sum(length(body)), 0) FROM spool").fetchone()
        oldest = []
        excess = total + size - self._max_bytes
        for row in database.execute(f"{free} ORDER BY id", (now, now)) if excess > 0 else ():
            if excess <= 0:
                break
            oldest.append(row)
            excess -= row[2]
        _delete(database, oldest)
        found = (old, "too old in the spool"), (oldest, "spool full")
        return [Loss(sum(spans for _, spans, _ in rows), reason) for rows, reason in found if rows]

    def _next(self, database: sqlite3.Connection, sent: Taken | None) -> Taken | None:
        if sent is not None:
            database.execute("DELETE FROM spool WHERE id = ?", (sent.id,))
        now = time_ns()
        row = database.execute(
            f"SELECT id, spans, body FROM spool WHERE service = ? AND {FREE} ORDER BY id LIMIT 1",
            (self._service, now, now),
        ).fetchone()
        if row is None:
            return None
        database.execute("UPDATE spool SET taken_ns = ? WHERE id = ?", (now, row[0]))
        return Taken(*row)


def _delete(database: sqlite3.Connection, rows: Sequence[tuple[int, int, int]]) -> None:
    database.executemany("DELETE FROM spool WHERE id = ?", [(row[0],) for row in rows])
