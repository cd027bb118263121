"""Spans as OTLP requests, whatever the program has put into them: one span that cannot be encoded costs no other."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link
from opentelemetry.trace.status import Status

from .rows import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LARGEST = 2**20 - 2**14  # bytes: a collector takes 4 MiB by grpc unless it is told otherwise, nginx 1 MiB by HTTP


class Request(NamedTuple):
    """A request to a collector, encoded; it stands for the next `spans` spans of a batch, of which some are `lost`."""

    body: bytes
    spans: int
    lost: int = 0


def requests(spans: Sequence[ReadableSpan]) -> Iterator[Request]:
    """Encode spans, in their order, into requests of no more than `LARGEST` bytes, or of one span that takes more."""
    body = _encoded(spans)
    if body is not None and (len(body) <= LARGEST or len(spans) == 1):
        yield Request(body, len(spans))
    elif len(spans) > 1:
        half = len(spans) // 2
        yield from requests(spans[:half])
        yield from requests(spans[half:])
    else:
        # Lone surrogates in a name, numbers beyond 64 bits: what OTLP cannot hold becomes text.
        mended = _encoded([_mended(spans[0])])
        yield Request(mended or b"", 1, lost=mended is None)


def _encoded(spans: Sequence[ReadableSpan]) -> bytes | None:
    try:
        return bytes(encode_spans(spans).SerializePartialToString())
    except Exception:  # of the program's values; the caller finds out which
        return None


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
