"""What the agent's own sending must not do to the program: appear in its traces, its log, its random numbers."""

from __future__ import annotations

import sys
from _thread import get_ident
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator
    from typing import Any

_sending: set[int] = set()
_last_message: dict[int, str] = {}
LIBRARIES = ("opentelemetry.", "urllib3", "requests", "grpc", "charset_normalizer")


@contextmanager
def on_our_own() -> Iterator[None]:
    """Run in a context without span and baggage, in which instrumentations are told to stand aside."""
    from opentelemetry import context

    thread = get_ident()
    suppressed = context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True, context.Context())
    token = context.attach(context.set_value("suppress_instrumentation", True, suppressed))
    _sending.add(thread)
    try:
        yield
    finally:
        _sending.discard(thread)
        context.detach(token)
        _leave_no_dummy(thread)


@contextmanager
def without_thread_pool() -> Iterator[None]:
    """Let the SDK, in this thread, ask its resource detectors one after the other, not in a thread pool.

    Importing OTLP's grpc exporter makes a resource (in SDK 1.45). A pool would count among the program's, and at the
    end of the interpreter none can be made.
    """
    from opentelemetry.sdk import resources

    native = resources.get_aggregated_resources
    thread = get_ident()

    def one_after_the_other(detectors: Any, initial_resource: Any = None, timeout: int = 5) -> resources.Resource:
        if get_ident() != thread:
            return native(detectors, initial_resource, timeout)
        resource = initial_resource or resources.Resource.get_empty()
        for detector in detectors:
            resource = resource.merge(detector.detect())
        return resource

    resources.get_aggregated_resources = one_after_the_other
    try:
        yield
    finally:
        resources.get_aggregated_resources = native


def silence_libraries() -> None:
    """Keep what the libraries of the wire log while the agent sends out of the program's log; the agent says it itself.

    Their loggers are the program's too: only records of a thread that is sending are held back.
    """
    import logging

    logging.getLogger("opentelemetry.util.re")  # says the headers that it does not understand while an exporter is made
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(LIBRARIES) and isinstance(logger, logging.Logger):
            logger.addFilter(_hold_back)  # adding the same filter again does nothing


def last_message() -> str:
    """Return what a library said last in this thread while it was held back, and forget it."""
    return _last_message.pop(get_ident(), "")


def _hold_back(record: logging.LogRecord) -> bool:
    thread = get_ident()
    if thread not in _sending:
        return True
    try:
        _last_message[thread] = record.getMessage()
    except Exception as error:
        _last_message[thread] = repr(error)
    return False


def _leave_no_dummy(thread: int) -> None:
    """Take out of `threading.enumerate()` what `threading.current_thread()`, called by `logging`, has put there."""
    threading = sys.modules.get("threading")
    if threading is not None and isinstance(threading._active.get(thread), threading._DummyThread):
        del threading._active[thread]
