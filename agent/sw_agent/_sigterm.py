"""SIGTERM: flush before it kills, and kill nevertheless.

A handler in Python is weaker than the default disposition, which kills whatever the process is doing: CPython only
notes the signal, and calls the handler when the main thread next runs Python code. Where it misses that moment the
process lives on, and `Pool.terminate()` or `Process.join()` in its parent waits for ever.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_flush: Callable[[], None] | None = None
_holding: set[int] = set()  # the threads that fork, and have blocked SIGTERM meanwhile


def flush_first(flush: Callable[[], None]) -> None:
    """Call `flush()` before SIGTERM kills, where its disposition is the default and this is the main thread.

    A handler of the program's own, there already or put there later, is left alone.
    """
    global _flush
    import signal

    _flush = flush
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # not the main thread of the main interpreter: Python allows handlers only there
        pass


def _on_sigterm(number: int, _frame: FrameType | None) -> None:
    import signal

    if signal.getsignal(number) is not _on_sigterm:
        return  # called by a handler of the program's, which has taken this one for a predecessor that does something
    if _flush is not None:
        _flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def hold() -> None:
    """Let a SIGTERM wait until the fork is over; called by the thread that forks.

    Else CPython forgets, in the child, what came between the fork and its own cleaning up after it.
    """
    signal = sys.modules.get("signal")
    if signal is None or signal.getsignal(signal.SIGTERM) is not _on_sigterm:
        return
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}):
        _holding.add(get_ident())


def release() -> None:
    """Let it come."""
    if get_ident() in _holding:
        import signal

        _holding.discard(get_ident())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
