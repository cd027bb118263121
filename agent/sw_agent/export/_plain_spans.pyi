from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from .redaction import Known

def encode(span: ReadableSpan, /) -> bytes | None:
    """Return a span as a field `ScopeSpans.spans`; None where it is not plain."""

def is_known(span: ReadableSpan, known: Known, /) -> bool:
    """Return whether resource, scope, name and keys of a plain span, and its values or their types, are those known.

    Not of another span, nor where nothing is known.
    """

def plain_copy(attributes: Any, /) -> dict[str, Any] | None:
    """Return a copy of a dict whose keys are texts, and its values texts, numbers or truth values; None of others."""
