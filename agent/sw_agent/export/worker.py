"""The thread that sends: it exists only while there is something to send, and stands aside for a fork.

A raw thread, not a `threading.Thread`: a program that joins all of `threading.enumerate()`, or waits until it is alone
there, must not wait for the agent. It blocks all signals, which are the program's. What is taken from `_thread` was
bound when the agent started, before anything (gevent's monkey patching, the agent's own plugins) could replace it.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_native_id, start_new_thread
from time import monotonic, sleep

from .._containment import contain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

NAME = "sw-agent-export"
IDLE_ROUNDS = 5  # flush intervals with nothing to send, after which the thread ends


class Worker:
    """Calls `work(None)` every `interval` seconds, or when woken; when nothing was `pending()` for long, `close()`.

    Where no thread can be started any more (the interpreter is ending), `finish` calls `work(seconds)` itself.

    `_running` is locked as long as the thread exists. A span's end may come at any moment, in a signal handler and in
    the garbage collector too: what it calls, `begin` and `wake`, takes no lock that it would have to wait for.
    """

    def __init__(
        self,
        work: Callable[[float | None], None],
        close: Callable[[], None],
        pending: Callable[[], bool],
        interval: float,
    ) -> None:
        self._work = work
        self._close = close
        self._pending = pending
        self._interval = interval
        self.reset()

    def reset(self) -> None:
        """Forget the thread: in a forked process it is not there, whatever it was doing."""
        self._running: LockType = allocate_lock()
        self._asleep: LockType = allocate_lock()
        self._asleep.acquire()
        self._stopping = False
        self._waiters: list[LockType] = []
        self._native_id: int | None = None

    def begin(self) -> bool:
        """Start the thread unless it runs; return whether it does (a process that ends can start none)."""
        if self._running.locked() or not self._running.acquire(False):
            return True
        try:
            start_new_thread(self._run, ())
        except RuntimeError:
            self._running.release()
            return False
        return True

    def wake(self) -> None:
        """Let the thread work now."""
        try:
            self._asleep.release()
        except RuntimeError:  # it is awake already, or somebody else has just woken it
            return

    def finish(self, timeout: float) -> bool:
        """Wait until everything that is pending now is done; return whether it was within `timeout` seconds."""
        if not self._pending():
            return True
        done = allocate_lock()
        done.acquire()
        self._waiters.append(done)
        if self.begin():
            self.wake()
            return done.acquire(timeout=max(0.0, timeout))
        if not self._running.acquire(timeout=max(0.0, timeout)):
            return False
        try:
            self._round(timeout)
            self._close()
        finally:
            self._running.release()
        return not self._pending()

    def pause(self, timeout: float) -> bool:
        """Let the thread finish and end within `timeout` seconds, and keep any other from starting until `resume`."""
        deadline = monotonic() + timeout
        if not self._running.acquire(False):
            self._stopping = True
            self.wake()
            if not self._running.acquire(timeout=max(0.0, timeout)):
                self._stopping = False
                return False
            self._stopping = False
        _wait_for_end_of(self._native_id, deadline)
        return True

    def resume(self) -> None:
        """Undo `pause`, where that returned true."""
        self._running.release()
        if self._pending() or self._waiters:
            self.begin()

    def _run(self) -> None:
        stopping = False
        try:
            _block_signals()
            self._native_id = get_native_id()
            _name_thread(self._native_id)
            stopping = self._rounds()
            self._close()
        except Exception as error:
            contain("the export thread", error)
        finally:
            self._running.release()
        # What came while the lock was still held has started no other thread.
        if not stopping and (self._pending() or self._waiters):
            self.begin()

    def _rounds(self) -> bool:
        """Work until told to stop, or until there was nothing to do for a while; return whether told."""
        idle = 0
        while True:
            self._asleep.acquire(timeout=self._interval)
            stopping = self._stopping
            idle = 0 if self._pending() else idle + 1
            self._round()
            if stopping or idle >= IDLE_ROUNDS:
                return stopping

    def _round(self, patience: float | None = None) -> None:
        waiters = [self._waiters.pop() for _ in range(len(self._waiters))]
        try:
            self._work(patience)
        finally:
            for waiter in waiters:
                waiter.release()


def _block_signals() -> None:
    try:
        from signal import SIG_BLOCK, pthread_sigmask, valid_signals
    except ImportError:  # Windows has no signal masks, and delivers signals to the main thread
        return
    pthread_sigmask(SIG_BLOCK, valid_signals())


def _name_thread(native_id: int) -> None:
    if sys.platform == "linux":
        try:
            with open(f"/proc/self/task/{native_id}/comm", "w") as file:
                file.write(NAME)
        except OSError:  # /proc is not there in every container; the name is for people who look
            pass


def _wait_for_end_of(native_id: int | None, deadline: float) -> None:
    """Wait until the operating system has no such thread any more: Python counts those when it forks (3.12+)."""
    if native_id is None or sys.platform != "linux":
        return
    from posix import stat

    while monotonic() < deadline:
        try:
            stat(f"/proc/self/task/{native_id}")
        except OSError:
            return
        sleep(0.0002)
