"""What Celery's messages bring and take along: the context as text among their headers, and what describes them.

The carrier is where other agents write and look for it: at the top level of the headers. Beside it is one header of the
agent's own, OURS, a dict of `published_at` (nanoseconds since the epoch), `injected` (whether the carrier is the
agent's, or the program's own) and `attempt` (the traceparent of the attempt that a retry repeats). Nothing of that is
trusted: what has another type counts for nothing.
"""

from __future__ import annotations

from time import time_ns

from sw_agent.carrier import ContextCarrier
from sw_agent.snapshot import ContextSnapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext

    Headers = dict[str, Any]

OURS = "sw_agent"
LONGEST = 8192  # bytes of a header: as many of baggage must be passed on; RabbitMQ refuses messages with 128 KiB


def put_in(message: Any, theirs: Any, snapshot: ContextSnapshot, attempt: SpanContext | None) -> None:
    """Put the carrier among a new message's headers, unless the program brings one with `theirs`, its own headers."""
    carrier = ContextCarrier.inject(snapshot)
    note: Headers = {"published_at": time_ns()}
    if attempt is not None:
        note["attempt"] = f"00-{attempt.trace_id:032x}-{attempt.span_id:016x}-{attempt.trace_flags:02x}"
    if not any(name in (theirs or ()) for name in carrier):
        message.headers.update((name, value) for name, value in carrier.items() if len(value) <= LONGEST)
        note["injected"] = True
    message.headers[OURS] = note


def received(headers: Headers) -> tuple[ContextSnapshot, Headers]:
    """Return the context that a message has brought, and its note; one of protocol 1 has `headers` among these."""
    inner = headers.get("headers")
    every = {**headers, **inner} if isinstance(inner, dict) else headers
    note = every.get(OURS)
    texts = {name: text for name, text in every.items() if isinstance(text, str) and len(text) <= LONGEST}
    return ContextCarrier(texts).extract(), note if isinstance(note, dict) else {}


def take_out(headers: Headers, snapshot: ContextSnapshot, note: Headers) -> None:
    """Take out what the agent has put in, so that the task sees the program's own headers."""
    inner = headers.get("headers")
    for where in (headers, inner) if isinstance(inner, dict) else (headers,):
        where.pop(OURS, None)
        if note.get("injected") is True:
            for name in ContextCarrier.inject(snapshot):
                where.pop(name, None)


def without_ours(headers: Any) -> Any:
    """Return headers that the program, or Celery, has copied from a message as they were before."""
    if not isinstance(headers, dict) or OURS not in headers:
        return headers
    headers = dict(headers)
    take_out(headers, *received(headers))
    return headers


def link_to_attempt(note: Headers) -> Link | None:
    """Return a link to the attempt that this message repeats."""
    attempt = note.get("attempt")
    return ContextCarrier({"traceparent": attempt}).extract_w3c().link() if isinstance(attempt, str) else None


def queue_of(options: Headers, default: str) -> str:
    """Return the name of the queue that a message is published to, else of what leads to it."""
    queue = options.get("queue") or options.get("routing_key") or options.get("exchange") or default
    return str(getattr(queue, "name", queue))


def described(headers: Headers, note: Headers) -> Headers:
    """Return what a received message's headers and its note say about it, as attributes."""
    task_id = headers.get("id")
    delivery = headers.get("delivery_info")
    queue = (delivery.get("routing_key") or delivery.get("exchange")) if isinstance(delivery, dict) else None
    attributes = {
        "messaging.system": "celery",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.message.id": task_id,
        "messaging.message.conversation_id": headers.get("root_id") or task_id,
    }
    attributes = {key: value for key, value in attributes.items() if isinstance(value, str)}
    published_at = note.get("published_at")
    if type(published_at) is int and published_at > 0:
        attributes["sw.wait_ms"] = max(0, time_ns() - published_at) / 1e6  # clocks may differ
    return attributes


def context_of(snapshot: ContextSnapshot, *, linked: bool = False) -> Context:
    """Return a snapshot's context; `linked` leaves out the span, which is not to be a parent."""
    from opentelemetry.context import Context
    from opentelemetry.trace import INVALID_SPAN, set_span_in_context

    context = snapshot.context or Context()
    return set_span_in_context(INVALID_SPAN, context) if linked else context
