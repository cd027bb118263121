"""Spans that OTLP cannot hold as they are: with lone surrogates in a name, or numbers beyond 64 bits."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link
from opentelemetry.trace.status import Status

from .rows import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def encodable(spans: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
    """Return the spans with those replaced that cannot be encoded, and how many could not be helped.

    Where all can be encoded, the very sequence that was given.
    """
    if all(map(_can_be_encoded, spans)):
        return spans, 0
    mended = [span if _can_be_encoded(span) else _mended(span) for span in spans]
    good = [span for span in mended if _can_be_encoded(span)]
    return good, len(spans) - len(good)


def _can_be_encoded(span: ReadableSpan) -> bool:
    try:
        encode_spans([span]).SerializePartialToString()
    except Exception:
        return False
    return True


def _mended(span: ReadableSpan) -> ReadableSpan:
    status = span.status
    return ReadableSpan(
        name=clean(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=clean(dict(span.attributes or {})),
        events=[
            Event(clean(event.name), clean(dict(event.attributes or {})), event.timestamp) for event in span.events
        ],
        links=[Link(link.context, clean(dict(link.attributes or {}))) for link in span.links],
        kind=span.kind,
        status=Status(status.status_code, clean(status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
