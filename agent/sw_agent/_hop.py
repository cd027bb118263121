"""A hop: one piece of work, from the moment it begins to run in its submitter's context until it is done."""

from __future__ import annotations

from time import time_ns

from ._containment import contain
from .snapshot import ContextSnapshot, Restored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

WAIT_MS = "sw.wait_ms"
FUNCTION_NAME = "code.function.name"


class Hop:
    """The context manager around a piece of work: it restores the snapshot, and holds the work's span if it has one.

    A span is made where `scope`, the plugin's name, is given. `linked` makes it the root of a trace of its own, with a
    link to the submitter.
    """

    __slots__ = ("_function", "_linked", "_restored", "_scope", "_snapshot", "span")

    def __init__(
        self,
        snapshot: ContextSnapshot | None,
        scope: str | None = None,
        function: object = None,
        *,
        linked: bool = False,
    ) -> None:
        self._snapshot = snapshot
        self._scope = scope
        self._function = function
        self._linked = linked
        self.span: Span | None = None

    def __enter__(self) -> Hop:
        context = self._snapshot.context if self._snapshot else None
        if self._scope is not None:
            try:
                context = self._start_span(context)
            except Exception as error:
                contain(f"plugin {self._scope}: starting a span", error)
        self._restored = Restored(context)
        self._restored.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restored.__exit__(kind, error, traceback)
        if self.span is not None:
            if error is not None:
                self.fail(error)
            self.span.end()
        self._snapshot = self._function = None

    def fail(self, error: BaseException) -> None:
        """Say that the work failed, where the library caught the exception; a cancellation is no failure."""
        if self.span is not None:
            mark_failed(self.span, error)

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
        return set_span_in_context(self.span, context)


class _Nothing(Hop):
    """The hop of work that brings no context, in a worker that has none: nothing to do."""

    __slots__ = ()

    def __enter__(self) -> Hop:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        return None


NOTHING = _Nothing(None)


def mark_failed(span: Span, error: BaseException) -> None:
    """Give a span the status ERROR and the type of the exception; a cancellation or the end of a program is none."""
    if not isinstance(error, Exception) or type(error).__name__ == "CancelledError":
        return
    from opentelemetry.trace import StatusCode

    kind = type(error)
    span.set_attribute(
        "error.type", kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )
    span.set_status(StatusCode.ERROR, f"{kind.__name__}: {error}")


def function_name(function: object) -> tuple[str, str]:
    """Return module and qualified name of the function behind a callable; for any other object those of its class."""
    try:
        while not hasattr(function, "__qualname__") and hasattr(function, "func"):
            function = function.func
        named = function if hasattr(function, "__qualname__") else type(function)
        return str(getattr(named, "__module__", None) or ""), str(named.__qualname__)
    except Exception:  # noqa: BLE001  the program's object raises when looked at: its type still has a name
        return type(function).__module__, type(function).__qualname__
