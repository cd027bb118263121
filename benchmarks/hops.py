"""What it costs to hand work over: to a pool, a thread, a task; and what connections cost beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, Row, Way, fill

TASK_SPANS = {
    "SW_PLUGIN_ASYNCIO_TASK_SPANS": "true",
    "OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE": "nothing",
}

# what, budget as a ratio, program and arguments, variables
HOPS: list[tuple[str, float | None, tuple[str, ...], dict[str, str]]] = [
    ("submit to a thread pool, in a span", 1.15, ("submit.py", "span"), {}),
    ("submit to a thread pool, no span", 1.03, ("submit.py", "no-span"), {}),
    ("create_task and await, in a span", 1.02, ("task.py",), {}),
    ("Thread.start and join, in a span", 1.03, ("thread.py",), {}),
    ("create_task and await, with task spans", None, ("task.py",), TASK_SPANS),
    ("round trip on a kept connection", None, ("echo.py", "trips"), {}),
    ("connection with one round trip", None, ("echo.py", "connections"), {}),
]


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure each hop; no span is sent, so that only the hop counts."""
    for what, budget, arguments, variables in HOPS:
        row = Row(what, "µs", budget=budget)
        environ = DROPPED | variables
        yield from fill([row], ways, rounds, lambda way, a=arguments, e=environ: way.numbers(*a, **e))  # type: ignore[misc]
