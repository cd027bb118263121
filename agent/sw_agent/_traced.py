"""What `@trace` makes of a function: a wrapper of the same kind, with a span from its first step to its last."""

from __future__ import annotations

from ._containment import contain
from ._hop import mark_failed
from ._instrument import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
    from types import TracebackType
    from typing import Any

    from opentelemetry.trace import Link, Span, Tracer

    from .snapshot import ContextSnapshot

LONGEST_ARGUMENT = 256  # characters of an argument's repr


class Traced:
    """How the span of one decorated function is made; see `sw_agent.trace` for the parameters."""

    def __init__(
        self,
        function: Callable[..., Any],
        tracer: Callable[[], Tracer | None],
        name: str | None,
        skip: Iterable[str] | bool,
        fields: Mapping[str, Any] | None,
        links: Iterable[ContextSnapshot] | Callable[..., Iterable[ContextSnapshot]],
    ) -> None:
        from inspect import signature

        self.function = function
        self._tracer = tracer
        self._name = name or str(getattr(function, "__qualname__", type(function).__qualname__))
        self._fields = dict(fields or {})
        self._links = links
        try:
            self._signature = None if skip is True else signature(function)
        except (TypeError, ValueError):  # a callable of C without a signature
            self._signature = None
        self._skip = frozenset(() if isinstance(skip, bool) else skip)

    def wrapper(self) -> Callable[..., Any]:
        """Return the wrapper: a coroutine function for a coroutine function, and so on for each kind."""
        import functools
        import inspect

        kinds = (
            (inspect.iscoroutinefunction, _coroutine_function),
            (inspect.isasyncgenfunction, _async_generator_function),
            (inspect.isgeneratorfunction, _generator_function),
            (callable, _function),
        )
        make = next(make for is_kind, make in kinds if is_kind(self.function))
        return functools.wraps(self.function)(make(self, self.function))

    def span(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Running:
        """Start the span of a call with these arguments."""
        try:
            tracer = self._tracer()
            if tracer is not None:
                return _Running(
                    tracer.start_span(
                        self._name, attributes=self._attributes(args, kwargs), links=self._all_links(args, kwargs)
                    )
                )
        except Exception as error:
            contain(f"@trace of {self._name}", error)
        return _Running(None)

    def _attributes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if self._signature is not None:
            try:
                arguments = self._signature.bind(*args, **kwargs).arguments
            except TypeError:  # the call is wrong: the function will say so
                arguments = {}
            for name, value in arguments.items():
                if name not in self._skip and name not in ("self", "cls"):
                    attributes[f"arg.{name}"] = _printable(value)
        for key, value in self._fields.items():
            try:
                attributes[key] = value(*args, **kwargs) if callable(value) else value
            except Exception as error:
                contain(f"@trace of {self._name}: field {key!r}", error)
        return attributes

    def _all_links(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Link]:
        try:
            links = self._links(*args, **kwargs) if callable(self._links) else self._links
        except Exception as error:
            contain(f"@trace of {self._name}: links", error)
            return []
        return [link for taken in links if (link := taken.link()) is not None]


class _Running:
    """The span of one call: a context manager that hands out its steps, and ends it."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def __enter__(self) -> Steps:
        if self._span is None:
            return Steps(None)
        from opentelemetry.trace import set_span_in_context

        return Steps(set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if error is not None:
            mark_failed(self._span, error)
        self._span.end()


def _function(traced: Traced, function: Callable[..., Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with traced.span(args, kwargs) as steps:
            return steps.step(function, *args, **kwargs)

    return call


def _coroutine_function(traced: Traced, function: Callable[..., Any]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with traced.span(args, kwargs) as steps:
            return await steps.of_awaitable(function(*args, **kwargs))

    return call


def _generator_function(traced: Traced, function: Callable[..., Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with traced.span(args, kwargs) as steps:
            return (yield from steps.of_generator(function(*args, **kwargs)))

    return call


def _async_generator_function(traced: Traced, function: Callable[..., Any]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with traced.span(args, kwargs) as steps:
            generator = function(*args, **kwargs)
            try:
                value = await steps.of_awaitable(generator.asend(None))
                while True:
                    try:
                        sent = yield value
                    except GeneratorExit:
                        await steps.of_awaitable(generator.aclose())
                        raise
                    except BaseException as error:
                        value = await steps.of_awaitable(generator.athrow(error))
                    else:
                        value = await steps.of_awaitable(generator.asend(sent))
            except StopAsyncIteration:
                return

    return call


def _printable(value: object) -> str | bool | int | float:
    try:
        if isinstance(value, str | bool | int | float):
            return value[:LONGEST_ARGUMENT] if isinstance(value, str) else value
        return repr(value)[:LONGEST_ARGUMENT]
    except Exception:
        return f"<{type(value).__qualname__} whose repr raises>"
