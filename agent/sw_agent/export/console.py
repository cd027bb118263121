"""Spans for people who watch: a line on stderr for each, when it ends. stdout is the program's."""

from __future__ import annotations

import sys

from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from .. import _log
from .output import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class ConsoleOutput:
    """Writes `trace span<parent duration name key=value …`; one write a batch, so that processes do not mix lines."""

    waits = False

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:  # noqa: ARG002
        """Write the lines."""
        stream = sys.__stderr__
        if stream is not None:
            text = "".join(f"{line(span)}\n" for span in spans)
            encoding = stream.encoding or "utf-8"
            with _log.writing.lock:
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
                stream.flush()
        outcome.done = len(spans)

    def end_round(self, until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Nothing: each batch has left."""
        return Outcome()

    def standby(self) -> ConsoleOutput:
        """Return this one, which never hangs alone: the stream is the program's."""
        return self

    def close(self) -> None:
        """Nothing: the stream is the program's."""


def line(span: ReadableSpan) -> str:
    """Return one span as one line of text."""
    duration_ms = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    words = [
        format_trace_id(span.context.trace_id),
        format_span_id(span.context.span_id) + (f"<{format_span_id(span.parent.span_id)}" if span.parent else ""),
        f"{duration_ms:.3f}ms",
        repr(span.name),
    ]
    if span.status.status_code is StatusCode.ERROR:
        words.append(f"ERROR({span.status.description or ''})")
    words += [f"{key}={value!r}" for key, value in (span.attributes or {}).items()]
    return " ".join(words)
