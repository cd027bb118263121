"""`ContextSnapshot`: OpenTelemetry's context, captured where work is submitted and restored where it runs.

OpenTelemetry keeps its context (the current span and the baggage) in one `contextvars` entry, so a snapshot is one read
of that entry and restoring it two writes. No other context variable travels: they are the program's own. Nothing here
imports OpenTelemetry: as long as the program has not, no span can be active.
"""

from __future__ import annotations

import sys
from _contextvars import ContextVar as _ContextVar  # `contextvars` would be a file to be found
from _contextvars import copy_context
from time import time_ns

from ._containment import hide_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable
    from contextvars import ContextVar, Token
    from types import ModuleType, TracebackType
    from typing import Any, ParamSpec, TypeVar

    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    P = ParamSpec("P")
    T = TypeVar("T")

_current: ContextVar[Context] | _OfAnotherRuntime | None = None
get_current: Callable[[], Context | None] = _ContextVar("sw_agent.none", default=None).get  # that of `_current`, if any
_empty: Any = None  # a `Context` with nothing in it
_level: ContextVar[int] | None = None  # how many `Restored` are open
restores_out_of_order = 0


class ContextSnapshot:
    """The context of one moment, to be restored later in another thread, task or process.

    Made by `capture()`. `taken_at` is that moment, in nanoseconds since the epoch. A snapshot of a moment without span
    and baggage is empty, and falsy. It can be pickled: it travels as a `ContextCarrier` does, so that an item on its
    way to another process brings its context along.
    """

    __slots__ = ("__weakref__", "context", "taken_at")

    def __init__(self, context: Context | None = None) -> None:
        self.context = context
        self.taken_at = time_ns()

    def __bool__(self) -> bool:
        return bool(self.context)

    def __repr__(self) -> str:
        return f"<ContextSnapshot of {len(self.context)} entries>" if self.context else "<ContextSnapshot, empty>"

    def __reduce__(self) -> tuple[Callable[..., ContextSnapshot], tuple[Any, ...]]:
        from .carrier import pack, unpack

        return unpack, (pack(self),)

    def restore(self) -> Restored:
        """Return a context manager inside which this snapshot's context is the current one."""
        return Restored(self.context)

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in this snapshot's context and return what it returns."""
        with Entry(self.context):
            return function(*args, **kwargs)

    def wrap(self, function: Callable[P, T], /) -> Callable[P, T]:
        """Return a callable that runs `function` in this snapshot's context, for interfaces that take a callable.

        It has the name and the attributes of `function`, equals it, and can be pickled where `function` can.
        """
        return InSnapshot(function, self)

    def into(self, variables: contextvars.Context) -> contextvars.Context:
        """Make this snapshot's context the current one in a `contextvars.Context`, and return that."""
        return _set_in(variables, self.context)

    def alone(self) -> contextvars.Context:
        """Return a new `contextvars.Context` in which nothing but this snapshot's context is set."""
        return alone(self.context)

    def link(self) -> Link | None:
        """Return a link to the span that was current, or None: for work that follows from it in a trace of its own."""
        if not self.context:
            return None
        from opentelemetry.trace import Link, get_current_span

        span_context = get_current_span(self.context).get_span_context()
        return Link(span_context) if span_context.is_valid else None


class Entry:
    """A context that is entered, and left again in the same thread and task, with all that was entered since.

    An empty or missing context means that nothing is current inside. Leaving never raises: where it happens in another
    thread or task, what is current there stays, unless it is this context.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context | None) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> object:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave(error)

    def enter(self) -> None:
        """Make the context the current one."""
        current = _current if _current is not None else _bound()
        if current is None:
            return
        self._context = self._context or _empty  # also where nothing is current: what is left behind inside must go
        self._token = current.set(self._context)

    def leave(self, error: BaseException | None = None) -> None:  # noqa: ARG002  for those who have a span to end
        """Make the context current again that was current before."""
        token = self._token
        if token is None or _current is None:
            return
        try:
            _current.reset(token)
        except (ValueError, RuntimeError):  # another task's or thread's token
            self._put_right()
        self._context = self._token = None

    def _put_right(self) -> None:
        from ._detaching import put_right

        put_right(_current, self._token, lambda context: context is self._context)


class Restored(Entry):
    """The context manager behind `ContextSnapshot.restore`: an entry that may be left after one around it.

    As generators do that are closed late. What is left first takes all inside it along, so there is nothing left to do.
    """

    __slots__ = ("_level",)

    def enter(self) -> None:
        """Make the context the current one."""
        super().enter()
        if self._token is not None:
            level = _levels()
            self._level = level.get(0) + 1
            level.set(self._level)

    def leave(self, error: BaseException | None = None) -> None:
        """Make the context current again that was current before the outermost one that is left."""
        if self._token is None:
            return
        level = _levels()
        innermost = level.get(0)
        if innermost < self._level:
            self._put_right()
            self._context = self._token = None
            return
        if innermost > self._level:
            global restores_out_of_order
            restores_out_of_order += 1
        super().leave(error)
        level.set(self._level - 1)


class InSnapshot:
    """A callable that runs another one in a snapshot's context, and is taken for it wherever that is possible."""

    __slots__ = ("__dict__", "__weakref__", "__wrapped__", "_snapshot")

    def __init__(self, function: Callable[..., Any], snapshot: ContextSnapshot) -> None:
        # The two that would be found in the class before `__getattr__` is asked.
        self.__doc__ = getattr(function, "__doc__", None)
        self.__module__ = getattr(function, "__module__", None)  # type: ignore[assignment]
        self.__wrapped__ = function
        self._snapshot = snapshot

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102  it is the function's own
        with Entry(self._snapshot.context):
            try:
                return self.__wrapped__(*args, **kwargs)
            except BaseException as error:
                hide_frame(error)
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.__wrapped__ == (other.__wrapped__ if isinstance(other, InSnapshot) else other))

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __reduce__(self) -> tuple[type[InSnapshot], tuple[Any, ContextSnapshot]]:
        return InSnapshot, (self.__wrapped__, self._snapshot)


EMPTY = ContextSnapshot()


def capture() -> ContextSnapshot:
    """Take a snapshot of the current context: what is current here can be restored wherever the work goes on."""
    current = _current if _current is not None else _bound()
    return ContextSnapshot(current.get() if current is not None else None)


def capture_if_active() -> ContextSnapshot | None:
    """Take a snapshot where a span or baggage is current, else return None at the cost of one check."""
    context = get_current()
    return ContextSnapshot(context) if context else None


def alone(context: Context | None) -> contextvars.Context:
    """Return a new `contextvars.Context` in which nothing but this context of OpenTelemetry's is set."""
    variables = copy_context()  # a third of the work, where nothing else is set here, as in most threads
    if len(variables) == 1 and context and type(_current) is _ContextVar and _current.get() is context:
        return variables
    return _set_in(type(variables)(), context)


def current_context() -> Context | None:
    """Return OpenTelemetry's current context, or None while nothing has loaded OpenTelemetry."""
    return get_current()


def set_current_context(context: Context) -> None:
    """Make `context` the current one from here on: for the start of a process, where there is nothing to go back to."""
    current = _bound()
    if current is not None:
        current.set(context)


def bind(module: ModuleType) -> None:
    """Find the context variable of `opentelemetry.context`; called when the program has loaded that module."""
    global _current, _empty, get_current
    runtime = module._RUNTIME_CONTEXT
    _current = getattr(runtime, "_current_context", None) or _OfAnotherRuntime(runtime)
    get_current = _current.get
    _empty = module.Context()


def _set_in(variables: contextvars.Context, context: Context | None) -> contextvars.Context:
    current = _current if _current is not None else _bound()
    if current is not None and (context or variables.run(current.get)):
        variables.run(current.set, context or _empty)
    return variables


def _bound() -> ContextVar[Context] | _OfAnotherRuntime | None:
    if _current is None and (module := sys.modules.get("opentelemetry.context")) is not None:
        if not hasattr(module, "_RUNTIME_CONTEXT"):
            return None  # its import has only begun
        bind(module)
    return _current


def _levels() -> ContextVar[int]:
    global _level
    if _level is None:
        from contextvars import ContextVar

        _level = ContextVar("sw_agent.level")
    return _level


class _OfAnotherRuntime:
    """A runtime context that OTEL_PYTHON_CONTEXT chose, with the three methods of a `ContextVar` that are used here."""

    def __init__(self, runtime: Any) -> None:
        self.get = runtime.get_current
        self.set = runtime.attach
        self.reset = runtime.detach
