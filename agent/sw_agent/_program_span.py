"""The program's span: one root over everything that a script or a job does, from bootstrap to its end.

Child processes that run Python become part of the same trace: the span is handed down in the environment variables that
OpenTelemetry names for it (TRACEPARENT, TRACESTATE, BAGGAGE).
"""

from __future__ import annotations

import os
import sys

from . import _command, _lifecycle, _sigterm
from ._unhidden import Unhidden

try:
    from _thread import _is_main_interpreter  # type: ignore[attr-defined]
except ImportError:  # before 3.13, where no pool makes interpreters

    def _is_main_interpreter() -> bool:
        return True


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from ._config import Config

CARRIER = ("traceparent", "tracestate", "baggage")

_span: Span | None = None
_context: Context | None = None
_handed_down: dict[str, tuple[str, str | None]] = {}  # variable: what it is, and was


def start(config: Config) -> None:
    """Start the span, child of the one in TRACEPARENT if there is one, and make it current for the main thread."""
    if _span is not None or _command.module_of_multiprocessing(sys.orig_argv) or not _is_main_interpreter():
        return  # in a spawned worker, a fork server or a pool's interpreter the context comes with the work
    with Unhidden(_command.folder(sys.orig_argv)):
        _start(config)


def _start(config: Config) -> None:
    global _span, _context
    from opentelemetry.trace import set_span_in_context

    from ._provider import get_tracer
    from .carrier import ContextCarrier
    from .snapshot import ContextSnapshot, set_current_context

    inherited = ContextCarrier({name: os.environ.get(name.upper(), "") for name in CARRIER}).extract_w3c()
    _span = get_tracer("sw_agent.program").start_span(config.command, inherited.context)
    _context = context = set_span_in_context(_span, inherited.context)
    set_current_context(context)
    for header, value in ContextCarrier.inject_w3c(ContextSnapshot(context)).items():
        variable = header.upper()
        _handed_down[variable] = value, os.environ.get(variable)
        os.environ[variable] = value
    _lifecycle.before_end(end)
    _sigterm.catch(always=True)
    _lifecycle.when_forked(_forget)


def hand_over(provider: Any) -> None:
    """Let the processors of the program's provider see the span's end too: before its exit function shuts them down.

    `atexit` calls first who registered last, and the provider registered when it was made.
    """
    if _span is not None:
        _span._span_processor = provider._active_span_processor  # type: ignore[attr-defined]
        import atexit

        atexit.register(end)


def end(error: BaseException | None = None) -> None:
    """End the span. It has failed where the program ended by an exception: `error`, or one that nobody has caught."""
    global _span
    span, _span = _span, None
    if span is None:
        return
    error = error or getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)  # last_exc: since 3.12
    if error is not None:
        from ._hop import record_error

        record_error(span, error)
    span.end()


def release() -> None:
    """Take the span out of the environment, and out of what is current where this is called."""
    global _context
    import atexit

    from .snapshot import current_context, set_current_context

    atexit.unregister(end)
    for variable, (value, before) in _handed_down.items():
        if os.environ.get(variable) == value:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before
    _handed_down.clear()
    context, _context = _context, None
    if context is not None and current_context() is context:
        from opentelemetry.context import Context

        set_current_context(Context())


def _forget() -> None:
    global _span
    _span = None  # the parent process's to end
