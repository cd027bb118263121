"""A span as a row of the local store, whatever values the program has put into it."""

from __future__ import annotations

import json
import os

from opentelemetry.trace import format_span_id, format_trace_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

LARGEST = (1 << 63) - 1  # SQLite's integers have 64 bits


def row(span: ReadableSpan, resource_id: int, run: str | None) -> tuple[Any, ...]:
    """Return the span's values in the order of the table's columns.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: it has values that neither JSON nor SQLite can hold.
    """
    return _row(span, resource_id, run, _as_it_is)


def cleaned_row(span: ReadableSpan, resource_id: int, run: str | None) -> tuple[Any, ...]:
    """Return the row of a span that has values which fit nowhere: these become text."""
    return _row(span, resource_id, run, clean)


def _row(span: ReadableSpan, resource_id: int, run: str | None, fit: Callable[[Any], Any]) -> tuple[Any, ...]:
    scope = span.instrumentation_scope
    events = [{"name": e.name, "time_ns": e.timestamp, "attributes": _plain(e.attributes)} for e in span.events]
    links = [_link(link) for link in span.links]
    return (
        format_trace_id(span.context.trace_id),
        format_span_id(span.context.span_id),
        format_span_id(span.parent.span_id) if span.parent else None,
        _text(fit(span.name)),
        span.kind.name,
        _within_64_bits(fit(span.start_time)),
        _within_64_bits(fit(span.end_time)),
        span.status.status_code.name,
        _text(fit(span.status.description or "")),
        _json(fit(_plain(span.attributes))),
        _json(fit(events)) if events else "[]",
        _json(fit(links)) if links else "[]",
        resource_id,
        _text(fit(scope.name)) if scope else "",
        run,
    )


def resource_text(resource: Resource) -> str:
    """Return the resource's attributes as JSON; a program's own may not say its pid."""
    return _json(clean({"process.pid": os.getpid(), **resource.attributes}))


def clean(value: Any) -> Any:
    """Return a value that JSON can hold and every terminal can print: containers go on, the rest becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -LARGEST <= value <= LARGEST else _long_integer(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # nan and the infinities are no JSON
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return clean(_other(value))


def _as_it_is(value: Any) -> Any:
    return value


def _within_64_bits(time: Any) -> int:
    return max(-LARGEST, min(int(time or 0), LARGEST))


def _json(value: Any) -> str:
    return _text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_other))


def _text(value: str) -> str:
    if not value.isascii():
        value.encode()  # raises where there are lone surrogates
    return value


def _other(value: Any) -> Any:
    """Return what JSON has no word for, as something that it has one for."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    try:
        return dict(value) if hasattr(value, "keys") else str(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _long_integer(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return hex(value)


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(attributes) if attributes else {}


def _link(link: Any) -> dict[str, Any]:
    return {
        "trace_id": format_trace_id(link.context.trace_id),
        "span_id": format_span_id(link.context.span_id),
        "attributes": _plain(link.attributes),
    }
