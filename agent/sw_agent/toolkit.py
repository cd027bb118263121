"""`@trace`, `trace_id()`, `tag()`, `follows_from()`, `uninstall()`: usable, and doing nothing, where no agent runs."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar, overload

    from opentelemetry.trace import Span, Tracer

    from .snapshot import ContextSnapshot

    F = TypeVar("F", bound=Callable[..., Any])
else:

    def overload(function: object) -> object:
        """Stand for `typing.overload`, which is not imported into traced programs."""
        return function


@overload
def trace(function: F, /) -> F: ...
@overload
def trace(
    *,
    name: str | None = None,
    skip: Iterable[str] | bool = (),
    fields: Mapping[str, Any] | None = None,
    links: Iterable[ContextSnapshot] | Callable[..., Iterable[ContextSnapshot]] = (),
) -> Callable[[F], F]: ...
def trace(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    skip: Iterable[str] | bool = (),
    fields: Mapping[str, Any] | None = None,
    links: Iterable[ContextSnapshot] | Callable[..., Iterable[ContextSnapshot]] = (),
) -> Any:
    """Give each call of a function, coroutine function or generator function of either kind a span.

    The span lasts from the first step of the function to its last, is current inside it, and not in its consumer
    between two steps. Its name is `name` or the function's qualified name. The arguments become attributes `arg.NAME`,
    but for those named in `skip`; `skip=True` leaves all out. `fields` are further attributes, `links` snapshots of the
    spans that this one follows from; a callable in their place is called with the function's arguments. An exception
    that leaves the function is recorded, once, and passed on; a cancellation is no error.
    """

    def decorate(function: Any) -> Any:
        from ._traced import Traced

        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(decorate(function.__func__))
        return Traced(function, _tracer, name, skip, fields, links).wrapper()

    return decorate if function is None else decorate(function)


def trace_id() -> str:
    """Return the id of the current trace, 32 hexadecimal digits, or an empty string where there is none."""
    span = _current_span()
    if span is None or not (context := span.get_span_context()).is_valid:
        return ""
    return f"{context.trace_id:032x}"


def tag(key: str, value: str | bool | int | float) -> None:
    """Set an attribute of the current span."""
    span = _current_span()
    if span is not None:
        span.set_attribute(key, value)


def follows_from(snapshot: ContextSnapshot) -> None:
    """Link the current span to the one that was current in `snapshot`: it follows from it without being its child."""
    span = _current_span()
    if span is not None and (link := snapshot.link()) is not None:
        span.add_link(link.context)


def uninstall() -> None:
    """Take the agent out of this process: what was recorded leaves, and the program goes on as if there were no agent.

    Every function and every object that the agent has replaced is again the very one that it was; calls, tasks and
    requests that are under way end well. Spans that are open leave as incomplete. It takes as long as sending does,
    at most `exit_timeout`; processes that are started later have no agent, but those of a fork server that is running.
    """
    from . import _bootstrap

    if _bootstrap.is_running():
        from ._uninstall import uninstall

        uninstall()


def _current_span() -> Span | None:
    opentelemetry = sys.modules.get("opentelemetry.trace")
    return opentelemetry.get_current_span() if opentelemetry is not None else None


def _tracer() -> Tracer | None:
    """Return a tracer, or None where neither the agent runs nor the program uses OpenTelemetry."""
    from . import _bootstrap

    if not _bootstrap.is_running() and "opentelemetry.trace" not in sys.modules:
        return None
    from . import _provider

    return _provider.get_tracer("sw_agent.toolkit")
