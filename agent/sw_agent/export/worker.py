"""The thread that sends: it exists only while there is something to send, and stands aside for a fork.

A raw thread, not a `threading.Thread`: a program that joins all of `threading.enumerate()`, or waits until it is the only
one in there, must not wait for the agent. It blocks all signals, which are the program's. What is native here was bound
when the agent started, before anything (gevent's monkey patching, the agent's own plugins) could replace it.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident, get_native_id, start_new_thread
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

NAME = "sw-agent-export"
IDLE_ROUNDS = 5  # flush intervals with nothing to send, after which the thread ends


class Worker:
    """Calls `work(None)` every `interval` seconds, or when woken, while `pending()`; and `close()` before its thread ends.

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
        self.thread_id: int | None = None
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
            pass

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
        if self._pending():
            self.begin()

    def _run(self) -> None:
        _block_signals()
        self.thread_id = get_ident()
        self._native_id = get_native_id()
        _name_thread(self._native_id)
        idle = 0
        while True:
            self._asleep.acquire(timeout=self._interval)
            stopping = self._stopping
            idle = 0 if self._pending() else idle + 1
            self._round()
            if stopping or idle >= IDLE_ROUNDS:
                break
        self._close()
        self.thread_id = None
        self._running.release()
        # What became pending before the lock was released has started no other thread.
        if self._pending() and not stopping:
            self.begin()

    def _round(self, patience: float | None = None) -> None:
        waiters = [self._waiters.pop() for _ in range(len(self._waiters))]
        try:
            self._work(patience)
        finally:
            for waiter in waiters:
                waiter.release()


def _block_signals() -> None:
    try:
        from _signal import SIG_BLOCK, pthread_sigmask, valid_signals
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
