"""What `_sigterm_handler` does, where that could not be compiled: by the one handler in C that Python itself has.

`faulthandler` writes more than a byte: a traceback, for which it walks through the frames of the thread that the signal
has met. CPython 3.11, 3.12.0 to 3.12.7 and 3.13.0 can crash at that where the thread is just calling or returning
(CPython issue 123967), once in 5,000 to 100,000 signals to a process that never rests.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and faster to import
import faulthandler


def register(descriptor: int) -> bool:
    """Write something into this descriptor at SIGTERM; return false where somebody else handles that signal."""
    if not hasattr(faulthandler, "register") or _signal.getsignal(_signal.SIGTERM) != _signal.SIG_DFL:  # Windows
        return False
    faulthandler.register(_signal.SIGTERM, file=descriptor, all_threads=False, chain=False)
    return True


def unregister() -> None:
    """Let SIGTERM do again what it does by default, unless somebody else handles it now."""
    # It puts back the disposition that it found: not over a handler that the program has set since, by a `signal` that
    # it had bound to a name of its own before the agent could see to it.
    if _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
        faulthandler.unregister(_signal.SIGTERM)
