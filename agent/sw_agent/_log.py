"""The agent's logger: `sw_agent`, to stderr, apart from the program's own logging.

`logging` is imported with the first message, not before: most programs never see one.
"""

from __future__ import annotations

from ._threads import LateLock
from ._unhidden import Unhidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Sequence
    from typing import Any

# Held by who writes to stderr for the agent, and over each fork: the child of a fork in the midst of a write could
# never write there itself, since nobody in it would release Python's own lock.
writing = LateLock()
_logger: logging.Logger | None = None
_level = "WARNING"
_redact: Sequence[str] = ()


def configure(level: str, redact: Sequence[str] = ()) -> None:
    """Set the level, a name of `logging`'s, below which messages are not printed, and what is not printed of them."""
    global _level, _redact
    _level, _redact = level, redact
    if _logger is not None:
        _logger.setLevel(level)


def logger() -> logging.Logger:
    """Return the agent's logger, made at the first call."""
    global _logger
    if _logger is None:
        with Unhidden():
            import logging

            from .export.secret_values import Values

        _logger = logging.getLogger("sw_agent")
        _logger.propagate = False
        _logger.setLevel(_level)
        handler: Any = logging.StreamHandler()
        emit = handler.emit

        def emit_alone(record: logging.LogRecord) -> None:
            with writing.lock:
                emit(record)

        handler.emit = emit_alone
        formatter: Any = logging.Formatter("sw-python: %(levelname)s: %(message)s")
        formatted = formatter.format
        values = Values(_redact)
        formatter.format = lambda record: values.text(formatted(record))  # other people's exceptions may hold secrets
        handler.setFormatter(formatter)
        _logger.addHandler(handler)
    return _logger


def info(message: str, *args: object) -> None:
    """Log at INFO without importing `logging` where INFO is off."""
    if _level in ("DEBUG", "INFO"):
        logger().info(message, *args)


def debug(message: str, *args: object) -> None:
    """Log at DEBUG without importing `logging` where DEBUG is off."""
    if _level == "DEBUG":
        logger().debug(message, *args)
