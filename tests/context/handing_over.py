"""What the parts of ways.py share: places, what a piece of work sees, and the list of ways."""

from __future__ import annotations

import asyncio
import contextvars
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

Seen = tuple[Any, Any]
variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("variable", default=None)
places: dict[str, str] = {}
tracer = trace.get_tracer("program")


def look(*_: object) -> Seen:
    """What a piece of work sees: the variable, and the id of the current span."""
    span_context = trace.get_current_span().get_span_context()
    return variable.get(), f"{span_context.span_id:x}" if span_context.is_valid else None


@contextmanager
def place(name: str) -> Iterator[None]:
    token = variable.set(name)
    with tracer.start_as_current_span(name):
        places[str(look()[1])] = name
        yield
    variable.reset(token)


class Looked:
    """Work whose caller throws its result away: what it saw is waited for."""

    def __init__(self) -> None:
        self._seen: queue.Queue[Seen] = queue.Queue()

    def __call__(self, *_: object) -> None:
        self._seen.put(look())

    def seen(self) -> Seen:
        return self._seen.get(timeout=30)


WAYS: dict[str, Callable[[], Seen]] = {}


def way(name: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        if asyncio.iscoroutinefunction(function):
            WAYS[name] = lambda: asyncio.run(function())
        else:
            WAYS[name] = function
        return function

    return register


def second(submit: Callable[[], Seen]) -> Seen:
    """Submit twice: the worker has been started by somebody else's item."""
    with place("first submitter"):
        submit()
    with place("submitter"):
        return submit()
