"""The agent's logger: `sw_agent`, to stderr, apart from the program's own logging.

`logging` is imported with the first message, not before: most programs never see one.
"""

from __future__ import annotations

from ._unhidden import Unhidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

_logger: logging.Logger | None = None
_level = "WARNING"


def configure(level: str) -> None:
    """Set the level, a name of `logging`'s, below which messages are not printed."""
    global _level
    _level = level
    if _logger is not None:
        _logger.setLevel(level)


def logger() -> logging.Logger:
    """Return the agent's logger, made at the first call."""
    global _logger
    if _logger is None:
        with Unhidden():
            import logging

        _logger = logging.getLogger("sw_agent")
        _logger.propagate = False
        _logger.setLevel(_level)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("sw-python: %(levelname)s: %(message)s"))
        _logger.addHandler(handler)
    return _logger


def debug(message: str, *args: object) -> None:
    """Log at DEBUG without importing `logging` where DEBUG is off."""
    if _level == "DEBUG":
        logger().debug(message, *args)
