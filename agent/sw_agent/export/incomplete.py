"""Spans that are still open when the program ends: they leave as they are then, marked as incomplete."""

from __future__ import annotations

from time import time_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, Span

INCOMPLETE = "sw.incomplete"


def as_it_is(span: Span) -> ReadableSpan:
    """Return a copy of an open span that ends now and says that it does so before its time."""
    from opentelemetry.sdk.trace import ReadableSpan  # not where only the name is wanted

    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={**(span.attributes or {}), INCOMPLETE: True},
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=time_ns(),
        instrumentation_scope=span.instrumentation_scope,
    )
