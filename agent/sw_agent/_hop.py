"""A hop: one piece of work, from the moment it begins to run in its submitter's context until it is done."""

from __future__ import annotations

import sys
from time import time_ns

from ._containment import contain
from .snapshot import ContextSnapshot, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

WAIT_MS = "sw.wait_ms"
FUNCTION_NAME = "code.function.name"
RECORDED_IN = "_sw_recorded_in"  # among the attributes of an exception, the id of a trace


class Hop(Entry):
    """The context manager around a piece of work, in which its submitter's context is the current one.

    The plain one has no span. An empty or missing context means that nothing is current inside. Nothing here raises.
    """

    __slots__ = ()
    span: Span | None = None

    def __enter__(self) -> Hop:
        self.enter()
        return self

    def fail(self, error: BaseException) -> None:
        """Say that the work failed, where the library caught the exception; a cancellation is no failure."""
        if self.span is not None:
            mark_failed(self.span, error)


class SpanHop(Hop):
    """A hop with a span for the work, made when the work begins.

    `scope` is the plugin's name, `function` what the program submitted. Where `relation` is "link" the span is the root
    of a trace of its own, with a link to the submitter; where it is "none" it only says how long the work has waited.
    """

    __slots__ = ("_function", "_linked", "_scope", "_snapshot", "span")

    def __init__(self, snapshot: ContextSnapshot | None, scope: str, function: object, relation: str) -> None:
        super().__init__(snapshot.context if snapshot is not None and relation != "none" else None)
        self._snapshot = snapshot
        self._scope = scope
        self._function = function
        self._linked = relation == "link"
        self.span = None

    def enter(self) -> None:
        """Start the span, and make it the current one."""
        try:
            self._context = self._start_span(self._context)
        except Exception as error:
            contain(f"plugin {self._scope}: starting a span", error)
        self._snapshot = self._function = None
        super().enter()

    def leave(self, error: BaseException | None = None) -> None:
        """End the span; `error` is what the work raised."""
        super().leave()
        if self.span is None:
            return
        if error is not None:
            self.fail(error)
        span, self.span = self.span, None
        try:
            span.end()
        except Exception as failure:
            contain(f"plugin {self._scope}: ending a span", failure)

    def _start_span(self, context: Context | None) -> Context:
        from opentelemetry.context import Context
        from opentelemetry.trace import INVALID_SPAN, set_span_in_context

        from ._provider import get_tracer

        module, name = function_name(self._function)
        attributes: dict[str, str | float] = {FUNCTION_NAME: f"{module}.{name}" if module else name}
        links = []
        if self._snapshot is not None:
            attributes[WAIT_MS] = max(0, time_ns() - self._snapshot.taken_at) / 1e6
        context = context if context is not None else Context()
        if self._linked and self._snapshot is not None and (link := self._snapshot.link()) is not None:
            links.append(link)
            context = set_span_in_context(INVALID_SPAN, context)
        tracer = get_tracer(f"sw_agent.{self._scope}")
        self.span = tracer.start_span(name, context, attributes=attributes, links=links)
        return inside(self.span, context)


class _Nothing(Hop):
    """The hop of work that brings no context, in a worker that has none: nothing to do."""

    __slots__ = ()

    def enter(self) -> None:
        pass

    def leave(self, error: BaseException | None = None) -> None:
        pass


NOTHING = _Nothing(None)


def inside(span: Span, context: Context) -> Context:
    """Return the context for what runs inside a span that was started in `context`.

    What runs inside one that is not sampled hangs under the nearest span that exists.
    """
    from opentelemetry.trace import get_current_span, set_span_in_context

    if not span.is_recording() and (
        get_current_span(context).get_span_context().is_valid or not span.get_span_context().is_valid
    ):
        return context
    return set_span_in_context(span, context)


def is_failure(error: BaseException | None) -> bool:
    """Return whether an exception is a failure: a cancellation, or the end of the program, is none."""
    kind = type(error)  # not isinstance, which may ask the program's object for its `__class__`
    return issubclass(kind, Exception) and kind.__name__ != "CancelledError"


def error_type(error: BaseException) -> str:
    """Return the value of the attribute `error.type` for an exception."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def mark_failed(span: Span, error: BaseException) -> None:
    """Record an exception on a span, where that is a failure."""
    if is_failure(error):
        record_error(span, error)


def record_error(span: Span, error: BaseException) -> None:
    """Give a span the status ERROR, type and text of any exception, and an event, unless a span of its trace has one.

    That span is where it was raised.
    """
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error_type(error))
    span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error_text(error)}")
    try:
        if vars(error).get(RECORDED_IN) != span.get_span_context().trace_id:
            span.record_exception(error)
            remember_recorded(span, (error,), {})
    except Exception:  # the program's exception raises when it is looked at: it has a type and no more
        return


def error_text(error: BaseException) -> str:
    """Return the text of an exception."""
    try:
        return str(error)
    except Exception:  # the program's exception raises when it is looked at
        return "<its text raises>"


def remember_recorded(span: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let an exception know the trace that it is recorded in; goes before `record_exception` of the SDK's spans."""
    error = args[0] if args else kwargs["exception"]
    vars(error)[RECORDED_IN] = span.get_span_context().trace_id


def function_name(function: Any) -> tuple[str, str]:
    """Return module and qualified name of the function behind a callable; for any other object those of its class."""
    try:
        function = _behind_partials(function)
        named = function if hasattr(function, "__qualname__") else type(function)
        return str(getattr(named, "__module__", None) or ""), str(named.__qualname__)
    except Exception:  # the program's object raises when looked at: its type still has a name
        return type(function).__module__, type(function).__qualname__


def _behind_partials(function: Any) -> Any:
    """Return what partials call. Other objects with a `func` say nothing by it: a mock has one, which has one, …."""
    functools = sys.modules.get("functools")
    for _ in range(10):  # a partial may have been made to call itself
        if functools is None or not issubclass(type(function), functools.partial):
            break
        runs_in_context = type(getattr(function.func, "__self__", None)).__name__ == "Context"  # asyncio.to_thread's
        function = function.args[0] if runs_in_context and function.args else function.func
    return function
