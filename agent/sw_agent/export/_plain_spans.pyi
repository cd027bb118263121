from collections.abc import Set

from opentelemetry.sdk.trace import ReadableSpan

def encode(span: ReadableSpan, /) -> bytes | None:
    """Return a span as a field `ScopeSpans.spans`; None where it is not plain."""

def is_known(span: ReadableSpan, keys: Set[str], texts: Set[str], types: Set[type], /) -> bool:
    """Return whether name and keys of a plain span, and its values or their types, are known; not of another span."""
