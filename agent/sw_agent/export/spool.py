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
from .store_file import StoreFile, is_locked
from .stored import StoreError, what_is_wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FAILURES", "Spool", "Taken", "is_locked", "what_is_wrong"]

SMALL = 2**16  # bytes up to which a request is put together with the one before
FAILURES = (sqlite3.Error, StoreError, OSError)
STILL_OURS = "id = ? AND taken_ns = ?"
# Taken by nobody; or so long ago, or so far ahead of a clock that was set back, that whoever took it is gone.
FREE = "(taken_ns = 0 OR taken_ns NOT BETWEEN :now - :lease AND :now + :lease)"


class Taken(NamedTuple):
    """A request that this process sends: its row, and when it was taken, which tells whether it is still this one's."""

    id: int
    taken_ns: int
    spans: int
    body: bytes


class Spool:
    """The requests of one service to one collector, in the file at `path`.

    All of the file together take `max_bytes`, and are `max_age` seconds old, at most. What somebody has taken, and
    neither sent nor given back, is free again after `lease` seconds. Everything here raises one of `FAILURES` where the
    file cannot be used.
    """

    def __init__(
        self, path: str, service: str, endpoint: str, max_bytes: int, max_age: float, lease: float = 120.0
    ) -> None:
        self._file = StoreFile(path)
        self._owner = {"service": service, "endpoint": endpoint}
        self._max_bytes = max_bytes
        self._max_age_ns = int(max_age * 1e9)
        self._lease_ns = int(lease * 1e9)

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
            lambda database: database.execute(f"UPDATE spool SET taken_ns = 0 WHERE {STILL_OURS}", taken[:2]), until
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
            "SELECT id, body FROM spool WHERE id = (SELECT max(id) FROM spool) AND taken_ns = 0"
            " AND service = :service AND endpoint = :endpoint AND length(body) < :small",
            {**self._owner, "small": SMALL},
        ).fetchone()
        if last is not None:  # two messages of protobuf, one after the other, are one with the fields of both
            database.execute(
                "UPDATE spool SET spans = spans + ?, body = ? WHERE id = ?",
                (request.spans, last[1] + request.body, last[0]),
            )
        else:
            database.execute(
                "INSERT INTO spool (service, endpoint, put_ns, spans, body)"
                " VALUES (:service, :endpoint, :now, :spans, :body)",
                {**self._owner, "now": now, "spans": request.spans, "body": request.body},
            )
        return True, losses

    def _make_room(self, database: sqlite3.Connection, size: int, now: int) -> list[Loss]:
        """Delete what is too old, of whatever service, and then of the oldest as much as takes the room of `size`."""
        free = f"SELECT id, spans, length(body) FROM spool WHERE {FREE}"
        times = {"now": now, "lease": self._lease_ns, "oldest": now - self._max_age_ns}
        old = database.execute(f"{free} AND put_ns < :oldest", times).fetchall()
        _delete(database, old)
        (total,) = database.execute("SELECT coalesce(sum(length(body)), 0) FROM spool").fetchone()
        oldest = []
        excess = total + size - self._max_bytes
        for row in database.execute(f"{free} ORDER BY id", times) if excess > 0 else ():
            if excess <= 0:
                break
            oldest.append(row)
            excess -= row[2]
        _delete(database, oldest)
        found = (old, "too old in the spool"), (oldest, "spool full")
        return [Loss(sum(spans for _, spans, _ in rows), reason) for rows, reason in found if rows]

    def _next(self, database: sqlite3.Connection, sent: Taken | None) -> Taken | None:
        if sent is not None:
            database.execute(f"DELETE FROM spool WHERE {STILL_OURS}", sent[:2])
        now = time_ns()
        row = database.execute(
            "SELECT id, spans, body FROM spool"
            f" WHERE service = :service AND endpoint = :endpoint AND {FREE} ORDER BY id LIMIT 1",
            {**self._owner, "now": now, "lease": self._lease_ns},
        ).fetchone()
        if row is None:
            return None
        database.execute("UPDATE spool SET taken_ns = ? WHERE id = ?", (now, row[0]))
        return Taken(row[0], now, *row[1:])


def _delete(database: sqlite3.Connection, rows: Sequence[tuple[int, int, int]]) -> None:
    database.executemany("DELETE FROM spool WHERE id = ?", [(row[0],) for row in rows])
