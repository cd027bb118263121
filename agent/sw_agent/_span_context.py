"""The contexts of spans, made as the tuples that they are: their constructor checks what is known to be right."""

from __future__ import annotations

from opentelemetry.trace import SpanContext, TraceFlags

NO_STATE = SpanContext(1, 1, False).trace_state


def is_tuple_of_known_parts() -> bool:
    """Return whether a SpanContext of this version is (trace id, span id, is remote, flags, state, is valid)."""
    flags = TraceFlags(1)
    return tuple(SpanContext(1, 2, True, flags)) == (1, 2, True, flags, NO_STATE, True)
