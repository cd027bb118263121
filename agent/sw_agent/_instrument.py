"""A span around code that runs in steps: entered at each step of a generator or coroutine, left at each yield.

Between two steps the consumer sees its own context, whatever the code has made current; at the next step the code finds
what it left. This is what tokio's `Instrument` does at each poll of a future.
"""

from __future__ import annotations

from . import snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from typing import Any

    from opentelemetry.context import Context


class Steps:
    """The context of one generator or coroutine, kept from step to step."""

    __slots__ = ("_context",)

    def __init__(self, context: Context | None) -> None:
        self._context = context  # None: the steps run as they are

    def step(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function`, which runs the code up to its next yield, in the code's context."""
        if self._context is None:
            return function(*args, **kwargs)
        with snapshot.Entry(self._context):
            try:
                return function(*args, **kwargs)
            finally:
                self._context = snapshot.current_context() or self._context

    def of_generator(self, generator: Generator[Any, Any, Any]) -> Stepped:
        """Return what `yield from` needs to run the generator in steps."""
        return Stepped(self, generator)

    def of_awaitable(self, awaitable: Awaitable[Any]) -> SteppedAwaitable:
        """Return what `await` needs to run the awaitable in steps."""
        return SteppedAwaitable(self, awaitable)


class Stepped:
    """A generator seen by `yield from`, each of whose steps runs in the context of its `Steps`."""

    __slots__ = ("_generator", "_steps")

    def __init__(self, steps: Steps, generator: Any) -> None:
        self._steps = steps
        self._generator = generator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._steps.step(next, self._generator)

    def send(self, value: Any) -> Any:
        """Run the step that `value` resumes; Python calls `__next__` where it is None."""
        return self._steps.step(self._generator.send, value)

    def throw(self, error: BaseException, *rest: Any) -> Any:
        """Run the step that an exception resumes."""
        throw = getattr(self._generator, "throw", None)
        if throw is None:
            raise error
        return self._steps.step(throw, error, *rest)

    def close(self) -> None:
        """Run the step that ends the generator early."""
        close = getattr(self._generator, "close", None)
        if close is not None:
            self._steps.step(close)


class SteppedAwaitable:
    """An awaitable whose steps run in the context of its `Steps`."""

    __slots__ = ("_awaitable", "_steps")

    def __init__(self, steps: Steps, awaitable: Awaitable[Any]) -> None:
        self._steps = steps
        self._awaitable = awaitable

    def __await__(self) -> Any:
        return Stepped(self._steps, self._awaitable.__await__())
