"""What the agent's own threads share: they block all signals, have a name in the system, and are waited for there.

They are raw threads, not `threading.Thread`s: a program that joins all of `threading.enumerate()`, or waits until it is
alone there, must not wait for the agent.
"""

from __future__ import annotations

import sys
from time import monotonic, sleep


def block_signals() -> None:
    """Block all signals in this thread: they are the program's."""
    try:
        from signal import SIG_BLOCK, pthread_sigmask, valid_signals
    except ImportError:  # Windows has no signal masks, and delivers signals to the main thread
        return
    pthread_sigmask(SIG_BLOCK, valid_signals())


def name_thread(native_id: int, name: str) -> None:
    """Name a thread, for people who look at the process from outside."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/self/task/{native_id}/comm", "w") as file:
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
