"""The thread that sends: it exists only while there is something to send, and stands aside for a fork.

What is taken from `_thread` was bound when the agent started, before anything (gevent's monkey patching, the agent's
own plugins) could replace it.
"""

from __future__ import annotations

from _thread import allocate_lock, get_native_id
from time import monotonic

from .._containment import contain
from .._threads import acquire, name_thread, start, wait_for_end_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

NAME = "sw-agent-export"
LONGEST_IMPORT = 5.0  # seconds
IDLE_ROUNDS = 5  # flush intervals with nothing to send, after which the thread ends


class Worker:
    """Calls `work(None)` every `interval` seconds, or when woken, and `close()` when there was nothing to do for long.

    There is something to do where something is `pending()`, or `has_more()` says that a later round will send it. Where
    no thread can be started any more (the interpreter is ending), `finish` calls `work(until)` itself.

    `_running` is locked as long as the thread exists. A span's end may come at any moment, in a signal handler and in
    the garbage collector too: what it calls, `begin` and `wake`, takes no lock that it would have to wait for.
    """

    def __init__(
        self,
        work: Callable[[float | None], None],
        close: Callable[[], None],
        pending: Callable[[], int],
        has_more: Callable[[], bool],
        interval: float,
    ) -> None:
        self._work = work
        self._close = close
        self._pending = pending
        self._has_more = has_more
        self._interval = interval
        self.reset()

    def reset(self) -> None:
        """Forget the thread: in a forked process it is not there, whatever it was doing."""
        self._running: LockType = allocate_lock()
        self._asleep: LockType = allocate_lock()
        self._asleep.acquire()
        self._stopping = False
        self._settling = False
        self._gave_up = False
        self._in_round = False
        self._left_over = 0
        self._waiters: list[LockType] = []
        self._native_id: int | None = None

    def begin(self) -> bool:
        """Start the thread unless it runs; return whether it does (a process that ends can start none)."""
        if self._running.locked() or not self._running.acquire(False):
            return True
        self._settling = True
        try:
            start(self._run)
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

    @property
    def stopping(self) -> bool:
        """Whether somebody waits in `pause` for the thread to end."""
        return self._stopping

    def finish(self, timeout: float) -> bool:
        """Wait until everything that is pending now is done; return whether it was within `timeout` seconds."""
        return not self._pending() or self._wait(timeout)

    def finish_round(self, timeout: float) -> bool:
        """Wait for the end of what the thread is doing, also where nothing is pending; return the same."""
        return not self._in_round or self._wait(timeout)

    def _wait(self, timeout: float) -> bool:
        done = allocate_lock()
        done.acquire()
        self._waiters.append(done)
        if self.begin():
            self.wake()
            return acquire(done, timeout=max(0.0, timeout))
        if not acquire(self._running, timeout=max(0.0, timeout)):
            return False
        try:
            self._round(monotonic() + timeout)
            self._close()
        finally:
            self._running.release()
        return not self._pending()

    def settled(self) -> None:
        """Tell that the thread has imported what it needs, and will wait for the network only."""
        self._settling = False

    def pause(self, timeout: float) -> bool:
        """Let the thread finish and end within `timeout` seconds, and keep any other from starting until `resume`.

        It takes longer while the thread imports: the child of a fork in the midst of that could never import the same
        module, since nobody there would release its lock. What hangs is waited for once, not at each fork.
        """
        longest = monotonic() + LONGEST_IMPORT
        if not self._running.acquire(False):
            self._stopping = True
            self.wake()
            while not acquire(self._running, timeout=0 if self._gave_up else timeout):
                if not self._settling or monotonic() > longest:
                    self._stopping = False
                    self._gave_up = True
                    return False
            self._stopping = False
        self._left_over = self._pending()
        try:
            wait_for_end_of(self._native_id, monotonic() + timeout)
        except BaseException:  # of a signal's handler
            self._running.release()
            raise
        return True

    def resume(self) -> None:
        """Undo `pause`, where that returned true; what was left over then goes on with what comes next."""
        self._running.release()
        if self._pending() > self._left_over or self._waiters:
            self.begin()

    def _run(self) -> None:
        stopping = False
        try:
            self._native_id = get_native_id()
            name_thread(self._native_id, NAME)
            stopping = self._rounds()
        except Exception as error:
            contain("the export thread", error)
        finally:
            self._close()
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
            idle = 0 if self._pending() or self._has_more() else idle + 1
            self._round()
            if stopping or idle >= IDLE_ROUNDS:
                return stopping

    def _round(self, until: float | None = None) -> None:
        self._in_round = True
        waiters = [self._waiters.pop() for _ in range(len(self._waiters))]
        try:
            self._work(until)
        finally:
            self._in_round = self._settling = self._gave_up = False
            for waiter in waiters:
                waiter.release()
