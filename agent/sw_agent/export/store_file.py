"""The file behind the local store and the spool: one SQLite database in WAL mode, of all processes of a user.

It is made when first written, opened anew where somebody has deleted it, and not touched where it is something else, or
of another version.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import contextmanager, suppress
from time import monotonic

from .._threads import acquire, allocate_lock, sleep
from .stored import APPLICATION_ID, VERSION, StoreError, check_file, is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

FORK_PATIENCE = 2.0  # seconds, for what takes milliseconds
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
# `body` is an encoded request of `spans` spans; whoever is sending it has said so in `taken_ns`.
SPOOL = """
CREATE TABLE IF NOT EXISTS spool (
    id INTEGER PRIMARY KEY AUTOINCREMENT, service TEXT NOT NULL, endpoint TEXT NOT NULL, put_ns INTEGER NOT NULL,
    taken_ns INTEGER NOT NULL DEFAULT 0, spans INTEGER NOT NULL, body BLOB NOT NULL)
"""


_open_files: set[StoreFile] = set()
_inherited: set[StoreFile] = set()
_writing: LockType = allocate_lock()  # held while SQLite works in this process


class StoreFile:
    """The file at `path`, by a connection that is this process's own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of what is open

    def write(self, work: Callable[[sqlite3.Connection], T], until: float) -> T:
        """Return `work(database)`, called in a transaction; again, until that time, while others hold the file.

        Raises:
            StoreError: the file is something else, or of another version.
            sqlite3.Error, OSError: it cannot be opened or written.
        """
        while True:
            try:
                with _only_here(until), transaction(self._open_database()) as database:
                    result = work(database)
            except BaseException as error:
                if not is_locked(error) or monotonic() > until:
                    self.close()
                    raise
                sleep(BREATH)
            else:
                sleep(BREATH)  # or who has much to write would leave no gap for the others
                return result

    def close(self) -> None:
        """Close the file, unless another thread of this process has been writing for long."""
        with suppress(sqlite3.OperationalError), _only_here(monotonic() + FORK_PATIENCE):
            self._close()

    def _close(self) -> None:
        database, self._database = self._database, None
        _open_files.discard(self)
        if database is not None:
            # What was committed is safe; where closing fails, the next one to open the file does the rest.
            with suppress(sqlite3.Error):
                database.close()

    def _open_database(self) -> sqlite3.Connection:
        if self._database is not None and self._identity != _identity(self.path):
            self._close()  # somebody has deleted or replaced it
        if self._database is None:
            if not any(file.path == self.path for file in _open_files):
                check_file(self.path)
            _keep_to_its_owner(self.path)
            self._database = _open(self.path)
            self._identity = _identity(self.path)
            _open_files.add(self)
        return self._database


@contextmanager
def _only_here(until: float) -> Iterator[None]:
    """Let no other thread of this process use SQLite inside.

    Raises:
        sqlite3.OperationalError: one does so until that time.
    """
    lock = _writing
    if not acquire(lock, timeout=max(0.0, until - monotonic())):
        raise sqlite3.OperationalError("locked by another thread")
    try:
        yield
    finally:
        lock.release()


# A fork: SQLite's locks do not survive it, and where a child inherits a connection SQLite takes them for its own there.


def before_fork() -> bool:
    """Close all files until the fork is over; return whether that was possible within `FORK_PATIENCE` seconds."""
    if not acquire(_writing, timeout=FORK_PATIENCE):
        return False
    try:
        for file in list(_open_files):
            file._close()
    except BaseException:  # of a signal's handler
        _writing.release()
        raise
    return True


def after_fork_in_parent() -> None:
    """Go on, where `before_fork` has returned true."""
    _writing.release()


def after_fork_in_child() -> None:
    """Begin anew: a thread that is not there may hold the lock, and have had files open, which must stay so here."""
    global _writing, _open_files
    _inherited.update(_open_files)
    _writing, _open_files = allocate_lock(), set()


def _open(path: str) -> sqlite3.Connection:
    """Open the store, made with its folder where there is none.

    Raises:
        StoreError: the file is something else, or of another version.
        sqlite3.Error, OSError: it cannot be opened or written.
    """
    _create_file(path)
    # Isolation level None: transactions are begun by hand. One thread at a time uses the connection, not always one.
    # Whoever finds the file locked tries again: waiting here would hold up a fork, and SQLite's own way to wait looks
    # ten times a second, not often enough to find the gap that a busy writer leaves.
    database = sqlite3.Connection(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        if not is_ours(database, path):
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect before the first table only
            with transaction(database):
                if not is_ours(database, path):  # another process may have been faster
                    for statement in SCHEMA.split(";"):
                        database.execute(statement)
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute(SPOOL)  # stores of older versions have none
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        # NORMAL: a crash of the process loses nothing, one of the machine the last transactions, never the file.
        database.execute("PRAGMA synchronous = NORMAL")
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
    _make_folder(folder)
    with _locked_folder(folder):
        if os.path.exists(path):
            return
        for leftover in (f"{path}-wal", f"{path}-shm"):
            try:
                os.unlink(leftover)
            except FileNotFoundError:  # the usual case
                continue
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # through no link that leads elsewhere


def _make_folder(folder: str) -> None:
    """Make a folder with all above it that are missing, the user's alone: `os.makedirs` leaves those to the umask."""
    if os.path.isdir(folder):
        return
    if os.path.dirname(folder) != folder:
        _make_folder(os.path.dirname(folder))
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):  # made by another process meanwhile
            raise


def _keep_to_its_owner(path: str) -> None:
    """Let nobody else read what is there, and take nothing that somebody else has put there, as into /tmp.

    Root writes into the files of others too, but not in a folder that everybody may write to.

    Raises:
        StoreError: a file belongs to another user.
    """
    if not hasattr(os, "geteuid"):
        return
    user = os.geteuid()
    for name in (path, f"{path}-wal", f"{path}-shm"):
        try:
            status = os.stat(name)
            folder = os.stat(os.path.dirname(name) or ".")
        except FileNotFoundError:
            continue
        if status.st_uid != user and (user != 0 or folder.st_mode & stat.S_IWOTH):
            raise StoreError(f"{name} belongs to another user; choose another export.path")
        if status.st_uid == user and status.st_mode & 0o077:
            os.chmod(name, 0o600)


@contextmanager
def _locked_folder(folder: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: there a file that is in use cannot be deleted
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise sqlite3.OperationalError("the folder is locked") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Make one transaction of what is done inside."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def is_locked(error: BaseException) -> bool:
    """Return whether an exception only says that another process is writing."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # deleted
        return None
    return status.st_dev, status.st_ino
