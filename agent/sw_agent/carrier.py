"""`ContextCarrier`: a context in string form, for everything that crosses a process by the program's own means."""

from __future__ import annotations

from _thread import get_ident

from .snapshot import EMPTY, ContextSnapshot, capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from typing_extensions import Self

LONGEST_HEADER = 8192  # bytes, of baggage: https://www.w3.org/TR/baggage/#limits
_W3C = frozenset(("traceparent", "tracestate", "baggage"))
# Logfire's, which warns a program that a context was read without its doing: it is the agent's that reads here.
WARNS_THE_PROGRAM = "WarnOnExtractTraceContextPropagator"
_reader: Reader | None = None
_reading: set[int] = set()  # ids of threads


class ContextCarrier(dict[str, str]):
    """A dict of headers (`traceparent`, `baggage`, …) that holds a context as text.

    The sender puts `ContextCarrier.inject()` beside its message, the receiver runs its work in
    `ContextCarrier(headers).extract()`. The headers are those of the propagators in OTEL_PROPAGATORS.
    """

    @classmethod
    def inject(cls, snapshot: ContextSnapshot | None = None) -> Self:
        """Write a snapshot's context, by default the current one, as headers; an empty context gives an empty dict."""
        snapshot = capture() if snapshot is None else snapshot
        return cls._injected(snapshot, _configured()) if snapshot else cls()

    def extract(self) -> ContextSnapshot:
        """Read the context back; headers that are missing or malformed give what is valid of them, or nothing."""
        return ContextSnapshot(reader().context_of(self)) if self else EMPTY

    @classmethod
    def inject_w3c(cls, snapshot: ContextSnapshot) -> Self:
        """Write a snapshot's context as W3C Trace Context and Baggage, whatever OTEL_PROPAGATORS says.

        For hops inside one program, which must work also where the program talks B3, or nothing, to others.
        """
        return cls._injected(snapshot, _w3c()) if snapshot else cls()

    def extract_w3c(self) -> ContextSnapshot:
        """Read back what `inject_w3c` wrote."""
        return ContextSnapshot(_read(_w3c(), self)) if self else EMPTY

    @classmethod
    def _injected(cls, snapshot: ContextSnapshot, propagator: TextMapPropagator) -> Self:
        carrier = cls()
        propagator.inject(carrier, snapshot.context)
        return carrier


class Reader:
    """Reads contexts by the propagator that is configured; made by `reader()`.

    `names` are the headers that it reads, in lower case; None where it may read any. `parent_in` reads the value of a
    header `traceparent` that comes without the others and is plain, as nearly all do; else it returns None. It takes a
    fifth of the time of a propagator's `extract`.
    """

    def __init__(self, propagator: Any) -> None:
        self.propagator = propagator
        if type(propagator).__name__ == WARNS_THE_PROGRAM:
            propagator = propagator.wrapped
        self._propagator: TextMapPropagator = propagator
        names = sorted(propagator.fields)
        self.names = names if _W3C.issuperset(names) else None
        self.parent_in = _reader_of_parents() if _is_w3c(propagator) else _no_parent_in

    def context_of(self, headers: Mapping[str, str]) -> Context | None:
        """Return the context that headers hold; what is malformed of it counts as missing."""
        if len(headers) == 1 and (context := self.parent_in(headers.get("traceparent"))) is not None:
            return context
        return _read(self._propagator, headers)


def reader() -> Reader:
    """Return what reads headers now."""
    global _reader
    propagator = _propagate.get_global_textmap() if _propagate is not None else _configured()
    if _reader is None or _reader.propagator is not propagator:
        _reader = Reader(propagator)
    return _reader


def _no_parent_in(_traceparent: object) -> None:
    return None


def _reader_of_parents() -> Callable[[object], Context | None]:
    import re

    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
    from opentelemetry.trace.propagation import _SPAN_KEY

    from ._span_context import NO_STATE, is_tuple_of_known_parts

    if not is_tuple_of_known_parts():
        return _no_parent_in
    # https://www.w3.org/TR/trace-context/#traceparent-header, of version 00
    parts_of = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
    flags_of = {f"{flags:02x}": TraceFlags(flags) for flags in range(256)}

    def parent_in(traceparent: object) -> Context | None:
        parts = parts_of(traceparent) if isinstance(traceparent, str) else None
        if parts is None:
            return None
        trace_digits, span_digits, flags = parts.groups()
        trace_id, span_id = int(trace_digits, 16), int(span_digits, 16)
        if not trace_id or not span_id:
            return None
        parent: Any = (trace_id, span_id, True, flags_of[flags], NO_STATE, True)
        return Context({_SPAN_KEY: NonRecordingSpan(tuple.__new__(SpanContext, parent))})

    return parent_in


def _is_w3c(propagator: Any) -> bool:
    w3c: Any = _w3c()
    of_context, of_baggage = map(type, w3c._propagators)
    if type(propagator) is type(w3c):
        kinds = set(map(type, propagator._propagators))
        return of_context in kinds and kinds <= {of_context, of_baggage}
    return type(propagator) is of_context


def _read(propagator: TextMapPropagator, headers: Mapping[str, str]) -> Context | None:
    from opentelemetry.context import Context

    readable = {str(name).lower(): _readable(value) for name, value in headers.items() if isinstance(value, str)}
    thread = get_ident()
    _reading.add(thread)
    try:
        return propagator.extract(readable, Context())
    except Exception as error:  # a propagator of somebody else's
        from ._containment import contain

        contain("reading the headers of a context", error)
        return None
    finally:
        _reading.discard(thread)


def _readable(value: str) -> str:
    """Return the members of a header, between commas, that a propagator can read: ASCII, and not too long together.

    OpenTelemetry's raise for a lone surrogate, and give up all of a baggage that is longer than 8192 bytes.
    """
    if value.isascii() and len(value) <= LONGEST_HEADER:
        return value
    members = []
    length = -1
    for member in value.split(","):
        if member.isascii() and length + len(member) + 1 <= LONGEST_HEADER:
            length += len(member) + 1
            members.append(member)
    return ",".join(members)


_QUIET = (
    "opentelemetry.baggage",
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)


def _keep_quiet() -> None:
    """Hold back what OpenTelemetry logs about malformed headers while they are read here.

    Whoever sends a request to the program would write into its log.
    """
    import logging

    for name in _QUIET:
        logging.getLogger(name).addFilter(_is_not_reading)


def release() -> None:
    """Let OpenTelemetry log again what it logs, until a carrier is used again."""
    global _w3c_propagator
    if _w3c_propagator is not None:
        import logging

        _w3c_propagator = None
        for name in _QUIET:
            logging.getLogger(name).removeFilter(_is_not_reading)


def _is_not_reading(_record: object) -> bool:
    return get_ident() not in _reading


def pack(snapshot: ContextSnapshot) -> tuple[dict[str, str], int]:
    """Return a snapshot as plain data, which a process without the agent can unpickle too; `unpack` reads it back."""
    return dict(ContextCarrier.inject_w3c(snapshot)), snapshot.taken_at


def unpack(packed: tuple[dict[str, str], int]) -> ContextSnapshot:
    """Return the snapshot that was packed, with the moment at which it was taken."""
    carrier, taken_at = packed
    snapshot = ContextSnapshot(ContextCarrier(carrier).extract_w3c().context)
    snapshot.taken_at = taken_at
    return snapshot


_w3c_propagator: TextMapPropagator | None = None


def _w3c() -> TextMapPropagator:
    global _w3c_propagator
    if _w3c_propagator is None:
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.propagators.composite import CompositePropagator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        _keep_quiet()
        _w3c_propagator = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    return _w3c_propagator


def prepare() -> None:
    """Import what a hop between processes needs, before there is one.

    Imported with the first hop, in the thread of a pool, it would leave the children that are forked meanwhile with an
    import lock that nobody there releases.
    """
    _w3c()


_propagate: Any = None  # `opentelemetry.propagate`


def _configured() -> TextMapPropagator:
    global _propagate
    if _propagate is None:
        w3c = _w3c()
        try:
            from opentelemetry import propagate as _propagate
        except Exception as error:  # OTEL_PROPAGATORS names one that is not installed: that module raises on import
            from ._containment import contain

            contain("OTEL_PROPAGATORS", error)
            return w3c
    return _propagate.get_global_textmap()  # type: ignore[no-any-return]
