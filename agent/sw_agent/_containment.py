"""Where the agent's own failures end: counted, said once for each place, never seen by the program."""

from __future__ import annotations

from itertools import count

SURROUNDINGS = (ImportError, OSError, MemoryError, RecursionError)
failures: dict[str, int] = {}
_numbers: dict[str, count[int]] = {}  # two threads that fail at once get different ones


def contain(place: str, error: BaseException) -> None:
    """Count an exception of agent or plugin code at `place`; the first one there is logged."""
    number = failures[place] = next(_numbers.setdefault(place, count(1)))
    if number == 1:
        say(f"{place} failed; the program goes on without it", error)


def say(message: str, error: BaseException | None = None) -> None:
    """Log at ERROR what has gone wrong in the agent, or in a plugin.

    With the traceback, unless the error says enough of what is wrong around the agent: what is missing, or used up.
    """
    try:
        from ._log import logger

        try:
            if isinstance(error, SURROUNDINGS) and not logger().isEnabledFor(10):  # logging.DEBUG
                logger().error("%s: %s: %s", message, type(error).__name__, error)
            else:
                logger().error("%s", message, exc_info=error)
        except Exception:  # of an exception that raises when it is looked at
            logger().error("%s: %s", message, type(error))
    except Exception:  # noqa: S110  stderr is closed, or the interpreter is ending: there is nobody to tell
        pass


def forget() -> None:
    """Count from one again, and say again what fails: for tests."""
    failures.clear()
    _numbers.clear()


def hide_frame(error: BaseException) -> None:
    """Take the frame that has caught the program's exception out of its traceback, before it is raised again.

    Without effect on Python 3.10, which raises it with the traceback that it was caught with.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
