"""Spans as OTLP requests, whatever the program has put into them: one span that cannot be encoded costs no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link
from opentelemetry.trace.status import Status

from .rows import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LONGEST_TEXT = 2**16  # characters
LARGEST = 2**20 - 2**14  # bytes: a collector takes 4 MiB by grpc unless it is told otherwise, nginx 1 MiB by HTTP


class Request(NamedTuple):
    """A request to a collector, encoded; it stands for the next `spans` spans of a batch, of which some are `lost`."""

    body: bytes
    spans: int
    lost: int = 0


def requests(spans: Sequence[ReadableSpan]) -> Iterator[Request]:
    """Encode spans, in their order, into requests of no more than `LARGEST` bytes.

    Where one span takes more, or has what OTLP cannot hold, its texts are cut, and such values become text.
    """
    body = _encoded(spans)
    if body is not None and len(body) <= LARGEST:
        yield Request(body, len(spans))
    elif len(spans) > 1:
        half = len(spans) // 2
        yield from requests(spans[:half])
        yield from requests(spans[half:])
    else:
        mended = _encoded([_mended(spans[0], _fit if body is None else _cut)]) or body
        yield Request(mended or b"", 1, lost=mended is None)


def _fit(value: Any) -> Any:
    return _cut(clean(value))


def _cut(value: Any) -> Any:
    """Return a value with all texts cut that are longer than `LONGEST_TEXT`."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if isinstance(value, bytes):
        return value[: LONGEST_TEXT // 4]
    if isinstance(value, Mapping):
        return {_cut(key): _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list | tuple) else value


def _encoded(spans: Sequence[ReadableSpan]) -> bytes | None:
    try:
        return bytes(encode_spans(spans).SerializePartialToString())
    except Exception:  # of the program's values; the caller finds out which
        return None


def _mended(span: ReadableSpan, fit: Callable[[Any], Any]) -> ReadableSpan:
    status = span.status
    return ReadableSpan(
        name=fit(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=fit(dict(span.attributes or {})),
        events=[Event(fit(event.name), fit(dict(event.attributes or {})), event.timestamp) for event in span.events],
        links=[Link(link.context, fit(dict(link.attributes or {}))) for link in span.links],
        kind=span.kind,
        status=Status(status.status_code, fit(status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
