"""What the agent's own threads share: they block all signals, have a name in the system, and are waited for there.

They are raw threads, not `threading.Thread`s: a program that joins all of `threading.enumerate()`, or waits until it is
alone there, must not wait for the agent.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and faster to import
import sys
from _thread import RLock, allocate_lock, start_new_thread  # bound before gevent or a plugin of ours replaces it
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["LateLock", "acquire", "allocate_lock", "calmly", "name_thread", "sleep", "start", "wait_for_end_of"]

AT_ONCE = 16  # items between two looks at the clock
LONGEST_WORK, BREATH = 0.0005, 0.00005  # seconds
# As it was before a watcher for calls that block an event loop (blockbuster) replaced it: those are the program's.
acquire = type(allocate_lock()).acquire
LONGEST_START = 0.1  # seconds; an interpreter that is ending starts threads that never run (before 3.12)


class LateLock:
    """An RLock that is made when it is first needed, and that is found by nobody.

    `eventlet.monkey_patch()`, the first thing in a program, looks for each RLock that there is, through modules, dicts,
    lists and the variables of objects, and puts one for greenlets in its place: the agent's threads would hang in that.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    @property
    def lock(self) -> Any:
        """The lock, the same one for all threads."""
        return self._made.get("lock") or self._made.setdefault("lock", RLock())


def start(run: Callable[[], None]) -> None:
    """Start a thread in which all signals are blocked from its very beginning: they are the program's.

    A thread that only just begins would else take a signal which is on its way to the main thread, and `faulthandler`
    does nothing for a thread that is not Python's yet. It runs when this returns: `_thread._count()`, by which programs
    see whether their threads have ended, does not rise later.

    Raises:
        RuntimeError: the interpreter is ending.
    """
    runs = allocate_lock()
    runs.acquire()

    def begin() -> None:
        runs.release()
        run()

    masks = hasattr(_signal, "pthread_sigmask")  # Windows delivers signals to the main thread
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals()) if masks else None
    try:
        start_new_thread(begin, ())
        acquire(runs, timeout=LONGEST_START)
    finally:
        if masks:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def calmly(items: Iterable[T]) -> Iterator[T]:
    """Yield items, with a breath now and then in which other threads can run.

    Python would let them wait for 5 ms (`sys.getswitchinterval`), and again with each thing that they wait for. But to
    get back in after a breath takes as long as hundreds of items, where the program's threads are busy.
    """
    until = monotonic() + LONGEST_WORK
    for number, item in enumerate(items, 1):
        yield item
        if not number % AT_ONCE and monotonic() > until:
            sleep(BREATH)
            until = monotonic() + LONGEST_WORK


def name_thread(native_id: int, name: str) -> None:
    """Name a thread, for people who look at the process from outside."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/self/task/{native_id}/comm", "w", encoding="ascii") as file:
                file.write(name)
        except OSError:  # /proc is not there in every container
            pass


def wait_for_end_of(native_id: int | None, deadline: float) -> None:
    """Wait until the operating system has no such thread any more: Python counts those when it forks (3.12+).

    `deadline` is a moment of `time.monotonic()`.
    """
    if native_id is None or sys.platform != "linux":
        return
    from posix import stat

    while monotonic() < deadline:
        try:
            stat(f"/proc/self/task/{native_id}")
        except OSError:
            return
        sleep(0.0002)
