"""Where the agent's own failures end: counted, said once for each place, never seen by the program."""

from __future__ import annotations

SURROUNDINGS = (ImportError, OSError, MemoryError, RecursionError)
failures: dict[str, int] = {}


def contain(place: str, error: BaseException) -> None:
    """Count an exception of agent or plugin code at `place`; the first one there is logged.

    With its traceback, unless it says enough of what is wrong around the agent: something is missing, or used up.
    """
    seen = failures[place] = failures.get(place, 0) + 1
    if seen > 1:
        return
    try:
        from ._log import logger

        message = f"{place} failed; the program goes on without it"
        if isinstance(error, SURROUNDINGS) and not logger().isEnabledFor(10):  # logging.DEBUG
            logger().error("%s: %s: %s", message, type(error).__name__, error)
        else:
            logger().error("%s", message, exc_info=error)
    except Exception:  # noqa: S110  stderr is closed, or the interpreter is ending: there is nobody to tell
        pass


def hide_frame(error: BaseException) -> None:
    """Take the frame that has caught the program's exception out of its traceback, before it is raised again.

    Without effect on Python 3.10, which raises it with the traceback that it was caught with.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
