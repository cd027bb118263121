"""Time in programs that are measured; what is printed is in seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from opentelemetry import trace

tracer = trace.get_tracer("benchmark")

ATTRIBUTES = {
    "http.request.method": "GET",
    "http.route": "/users/{id}",
    "http.response.status_code": 200,
    "url.path": "/users/7",
    "url.scheme": "http",
    "server.address": "shop.test",
    "server.port": 8080,
    "cached": True,
}


def best(operation: Callable[[int], object], count: int, repeats: int = 9) -> float:
    """Return the least time of one of `count` operations: the machine's other work only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        operation(count)
        times.append((time.perf_counter() - start) / count)
    return min(times)


def flush() -> None:
    """Let the agent that there is, if there is one, send what has ended."""
    getattr(trace.get_tracer_provider(), "force_flush", int)()


def instructions_asked() -> int:
    """Return how many operations are to be counted, or 0 where time is to be measured."""
    return int(sys.argv[2]) if sys.argv[1:2] == ["instructions"] else 0
