"""SIGTERM: what has ended leaves before it kills, and it kills nevertheless.

A handler in Python is weaker than the default disposition, which kills whatever the process is doing. CPython only
notes the signal, and calls the handler when the main thread next runs Python code: one that comes just before a
blocking call waits for the end of that, and `Pool.terminate()` waits for its worker for ever.

So the signal is caught by a handler in C, `_sigterm_handler`, which writes at once, from whatever thread, into a pipe.
A thread that reads there flushes, takes the handler away, and sends the signal again. This holds only while there is
something to send; for the rest of the time there is no handler at all. `signal.getsignal` says SIG_DFL throughout, and
when the program sets a handler of its own this one is gone before.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and faster to import
import os
from _thread import allocate_lock, get_native_id
from os import kill, read, write  # as they were before `_sent_to_itself`, and before eventlet has patched them
from time import monotonic

from ._containment import contain
from ._patching import Patch
from ._threads import LateLock, acquire, name_thread, start, wait_for_end_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Any

NAME = "sw-agent-sigterm"
LONGEST_GOODBYE = 0.5  # seconds that letting go waits for the thread

_flush: Callable[[], None] | None = None
_watch: Watch | None = None
wanted = _always = _wanted_before_fork = False
_lock = LateLock()  # a signal handler of the program's may set another one


class Watch:
    """The pipe, and the thread that reads it: END is the word to end, any other byte is the handler's."""

    END = b"\0"

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self.caught = False
        self._reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self._identity = _identity(self.writing)
        self._running: LockType = allocate_lock()
        self._running.acquire()
        self._native_id: int | None = None
        try:
            start(self._run)
        except RuntimeError:  # the interpreter is ending
            self.close()
            raise

    def end(self) -> None:
        """Let the thread end, unless it is the one that calls, and wait for that."""
        if not self.is_there:  # and the thread has ended, or is about to
            return
        write(self.writing, self.END)
        if self._native_id != get_native_id() and acquire(self._running, timeout=LONGEST_GOODBYE):
            wait_for_end_of(self._native_id, monotonic() + LONGEST_GOODBYE)
            self.close()

    def _read(self) -> bytes:
        try:
            word = read(self._reading, 1) if self.is_there else b""
        except OSError:  # closed in between
            return b""
        return word if self.is_there else b""

    def close(self) -> None:
        """Close the pipe; the thread must be gone."""
        if self.is_there:
            os.close(self._reading)
            os.close(self.writing)

    @property
    def is_there(self) -> bool:
        """Whether the pipe is: a program that closes all files, as daemons do, closes it, and may take its numbers."""
        return _identity(self.writing) == _identity(self._reading) == self._identity

    def _run(self) -> None:
        try:
            self._native_id = get_native_id()
            name_thread(self._native_id, NAME)
            word = self._read()
            if not word:
                _lost(self)
            elif word != self.END:
                self.caught = True
                self._flush()
                _unregister()  # without the lock: whoever holds it may be waiting for this thread
                kill(os.getpid(), _signal.SIGTERM)
        except Exception as error:
            contain("waiting for SIGTERM", error)
        finally:
            self._running.release()


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed
        return None
    return status.st_dev, status.st_ino


def _lost(watch: Watch) -> None:
    """Let SIGTERM do what it does by default: the program has closed the pipe. The next span has it caught again."""
    global _watch, wanted
    if _watch is watch:
        _watch, wanted = None, False
        _unregister()


def flush_first(flush: Callable[[], None]) -> None:
    """Say what has to be done before SIGTERM kills."""
    global _flush
    _flush = flush
    import signal

    _set_by_the_program.install(signal)
    _sent_to_itself.install(os)
    _raised.install(signal)


def catch(*, always: bool = False) -> None:
    """Catch SIGTERM from now on, unless the program does or ignores it; `always` means until the process ends."""
    global wanted, _always
    wanted, _always = True, _always or always
    _begin()


def drop() -> None:
    """Let SIGTERM do what it does by default: there is nothing to send any more."""
    global wanted
    watch = _watch
    if watch is not None and watch.caught:
        return  # its thread waits for the one that calls, which must not wait for it
    if not _always:
        wanted = False
        pause()
        if wanted:  # by a thread that came too early, while this one held the lock
            _begin()


def pause() -> None:
    """Let it do so until `resume`."""
    global _watch
    with _lock.lock:
        watch, _watch = _watch, None
        if watch is None:
            return
        try:
            _unregister()
            watch.end()
        except Exception as error:
            contain("letting go of SIGTERM", error)


def release() -> None:
    """Leave SIGTERM to the program for good."""
    global _flush, wanted, _always
    for patch in (_raised, _sent_to_itself, _set_by_the_program):
        patch.uninstall()
    _flush, wanted, _always = None, False, False  # `catch` does nothing from now on
    pause()


def stand_aside() -> None:
    """Let it do so over a fork, lest the child write into its parent's pipe, until `come_back` or the next span."""
    global wanted, _wanted_before_fork
    pause()
    wanted, _wanted_before_fork = False, wanted


def come_back() -> None:
    """Undo `stand_aside`."""
    global wanted
    wanted = wanted or _wanted_before_fork
    resume()


def resume() -> None:
    """Undo `pause`."""
    if wanted:
        _begin()


def forget() -> None:
    """Begin anew in a forked process."""
    global wanted, _always, _lock, _watch
    wanted = _always = False
    _lock, watch, _watch = LateLock(), _watch, None
    if watch is not None:  # another thread's span began between `stand_aside` and the fork
        _unregister()


def _begin() -> None:
    global _watch
    try:
        if _flush is None or not _lock.lock.acquire(False):
            return  # somebody is at it; a span that ends in the garbage collector or in a signal handler must not wait
        try:
            if _watch is None and _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
                handler = _handler()
                _watch = Watch(_flush)
                if not handler.register(_watch.writing):
                    pause()
        finally:
            _lock.lock.release()
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        return
    except ImportError:  # an interpreter within the process: signals are the main one's
        return
    except Exception as error:
        contain("catching SIGTERM", error)


def _handler() -> Any:
    try:
        from . import _sigterm_handler as handler
    except ImportError:  # it is not compiled
        from . import _sigterm_by_faulthandler as handler  # type: ignore[no-redef]
    return handler


def _unregister() -> None:
    _handler().unregister()


def _make_way(wrapped: Callable[..., Any], _: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not args or args[0] != _signal.SIGTERM:
        return wrapped(*args, **kwargs)
    pause()
    try:
        return wrapped(*args, **kwargs)
    finally:
        resume()


_set_by_the_program = Patch("signal:signal", _make_way, "around")


def _flush_at_once(_: None, args: tuple[Any, ...], _kwargs: object) -> None:
    """Let a process that sends SIGTERM to itself not get any further, as without the agent."""
    if _watch is not None and args in ((os.getpid(), _signal.SIGTERM), (_signal.SIGTERM,)) and _flush is not None:
        _flush()
        pause()


_sent_to_itself = Patch("os:kill", _flush_at_once, "before")
_raised = Patch("signal:raise_signal", _flush_at_once, "before")
