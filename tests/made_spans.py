"""Spans made by hand, for tests of what becomes of spans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from sw_agent.export.output import Loss, Outcome
from sw_agent.export.store import Store

LARGE = 100_000_000
RESOURCE = Resource({"service.name": "shop", "process.pid": 7})


def context(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(1))


def span(trace: int = 1, number: int = 1, parent: int | None = None, name: str = "work", **more: Any) -> ReadableSpan:
    fields: dict[str, Any] = {
        "resource": RESOURCE,
        "start_time": 1000 * trace + number,
        "end_time": 1000 * trace + number + 10,
        "attributes": {},
        "instrumentation_scope": InstrumentationScope("tests"),
        "parent": context(trace, parent) if parent else None,
        **more,
    }
    return ReadableSpan(name, context(trace, number), **fields)


def send(store: Store, spans: Sequence[ReadableSpan]) -> list[Loss]:
    outcome = Outcome()
    store.send(spans, outcome, time.monotonic() + 30, False)
    return outcome.losses
