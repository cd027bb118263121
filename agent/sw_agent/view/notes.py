"""What is said under a span: what failed it, what it got over, that nobody has ended it, the spans it follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..export.incomplete import INCOMPLETE
from .tree import Row
from .wording import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..export.store import StoredSpan

FAILED, RECORDED, OPEN, FOLLOWS = "failed", "recorded", "open", "follows"


def notes(row: Row, by_id: Mapping[str, StoredSpan]) -> list[tuple[str, str]]:
    """Return the notes under a row, each a kind and a text.

    An exception that came up through several spans is told once, under the deepest: where it was raised.
    """
    span = row.span
    below = {exception for under in row.rows_under if isinstance(under, Row) for exception in _exceptions(under.span)}
    kind = FAILED if span.status == "ERROR" else RECORDED
    found = [(kind, exception) for exception in _exceptions(span) if exception not in below]
    if span.attributes.get(INCOMPLETE):
        found.append((OPEN, "incomplete: still open when the program ended"))
    return found + [(FOLLOWS, _follows(link, span, by_id)) for link in span.links]


def _exceptions(span: StoredSpan) -> list[str]:
    """Return the exceptions of a span as `Type: message`; of a failed span without one what its status says."""
    found = []
    for event in span.events:
        if event.get("name") == "exception":
            attributes = event.get("attributes") or {}
            kind = str(attributes.get("exception.type") or "exception").rpartition(".")[2]
            found.append(f"{kind}: {attributes.get('exception.message') or ''}")
    if span.status == "ERROR" and not found:
        found.append(str(span.status_description or span.attributes.get("error.type") or ""))
    texts = (printable(text).rstrip(": ") for text in found)
    return list(dict.fromkeys(text for text in texts if text))


def _follows(link: Mapping[str, object], span: StoredSpan, by_id: Mapping[str, StoredSpan]) -> str:
    """Name the span that a link points to: of this trace by its name, of another one by what `show` takes."""
    trace_id, span_id = str(link.get("trace_id")), str(link.get("span_id"))
    if trace_id != span.trace_id:
        return f"follows {span_id[:8]} of trace {trace_id[:8]}"
    return f"follows '{printable(by_id[span_id].name)}'" if span_id in by_id else f"follows {span_id[:8]}"
