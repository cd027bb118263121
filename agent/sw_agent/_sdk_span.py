"""The SDK's span, begun and ended in half the time where nothing is out of the ordinary; all else is the SDK's own."""

from __future__ import annotations

from _thread import allocate_lock
from time import time_ns

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import SpanLimits, _Span
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from .export.pipeline import Pipeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Event
    from opentelemetry.trace import Link, TraceState

_UNSET = Status(StatusCode.UNSET)
_NO_STATE = SpanContext(1, 1, False).trace_state
# Of these types, no subclass of them, every value may be an attribute as it is.
_PLAIN = frozenset((str, bool, int, float))
_TEXT = frozenset((str,))
_SPAN_ID = 1  # its place in the tuple that a SpanContext is


class AgentSpan(_Span):
    """A span of the agent's tracer, with no links at first.

    Its lists of events and links are made when something goes into them: most spans have none, and an empty list has
    room for many. Where nobody but the agent's pipeline hears of its end it goes there itself, not a copy of it.
    """

    _attributes: Any  # a BoundedAttributes
    _context: Any  # a SpanContext

    def __init__(
        self,
        tracer: Any,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Any,
        record_exception: bool,
        set_status_on_exception: bool,
    ) -> None:
        limits = tracer._span_limits
        self._name = name
        self._context = context
        self._kind = kind
        self._instrumentation_info = tracer.instrumentation_info
        self._instrumentation_scope = tracer._instrumentation_scope
        self._parent = parent
        self._start_time: int | None = None
        self._end_time: int | None = None
        self._attributes = _bounded(limits, attributes)
        self._events: Any = ()
        self._links: Any = ()
        self._resource = tracer.resource
        self._status = _UNSET
        self._sampler = tracer.sampler
        self._trace_config = None
        self._record_exception = record_exception
        self._set_status_on_exception = set_status_on_exception
        self._span_processor = tracer.span_processor
        self._limits = limits
        self._lock = allocate_lock()
        self._record_end_metrics = None

    def begin(self, start_time: int | None, parent_context: Context | None) -> None:
        """Do what `start` does, for a span that no other thread has yet."""
        self._start_time = start_time if start_time is not None else time_ns()
        processors: Any = getattr(self._span_processor, "_span_processors", ())
        if len(processors) == 1 and type(processors[0]) is Pipeline:
            processors[0].note(self, self._context[_SPAN_ID])
        else:
            self._span_processor.on_start(self, parent_context=parent_context)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute, as the SDK does."""
        bounded = self._attributes
        if type(value) in _PLAIN and type(key) is str and key and bounded.max_value_len is None:
            with self._lock:
                attributes = bounded._dict
                if self._end_time is None and (key in attributes or _has_room(bounded)):
                    attributes.pop(key, None)  # what is set again goes to the end
                    attributes[key] = value
                    return
        super().set_attribute(key, value)

    def end(self, end_time: int | None = None) -> None:
        """End the span, as the SDK does."""
        processors: Any = getattr(self._span_processor, "_span_processors", ())
        if len(processors) == 1 and type(processors[0]) is Pipeline:
            with self._lock:
                if ends := self._end_time is None:
                    self._end_time = end_time if end_time is not None else time_ns()
                    self._attributes._immutable = True
            if ends:
                processors[0].queue(self, self._context[_SPAN_ID])
                return
        super().end(end_time)

    def update_name(self, name: str) -> None:
        """Give the span another name, as the SDK does."""
        with self._lock:
            if self._end_time is None:
                self._name = name
                return
        super().update_name(name)

    def _add_event(self, event: Event) -> None:
        if type(self._events) is tuple and self._end_time is None:
            with self._lock:
                if type(self._events) is tuple:
                    self._events = BoundedList(self._limits.max_events)
        super()._add_event(event)

    def _add_link(self, link: Link) -> None:
        if type(self._links) is tuple and self._end_time is None:
            with self._lock:
                if type(self._links) is tuple:
                    self._links = BoundedList(self._limits.max_links)
        super()._add_link(link)


def span_context(trace_id: int, span_id: int, flags: TraceFlags, state: TraceState | None) -> SpanContext:
    """Return the context of a span of this process: what the constructor makes, in a third of its time."""
    is_valid = 0 < trace_id < 1 << 128 and 0 < span_id < 1 << 64
    return tuple.__new__(
        SpanContext, (trace_id, span_id, False, flags, _NO_STATE if state is None else state, is_valid)
    )


def _bounded(limits: SpanLimits, attributes: Any) -> BoundedAttributes:
    count, longest = limits.max_span_attributes, limits.max_span_attribute_length
    if (
        type(attributes) is dict
        and longest is None
        and (count is None or len(attributes) <= count)
        and _PLAIN.issuperset(map(type, attributes.values()))
        and _TEXT.issuperset(map(type, attributes))
        and "" not in attributes
    ):
        bounded: Any = BoundedAttributes(count, None, False)
        bounded._dict.update(attributes)
        return bounded  # type: ignore[no-any-return]
    return BoundedAttributes(count, attributes, False, longest)


def _has_room(bounded: Any) -> bool:
    return bounded.maxlen is None or len(bounded._dict) < bounded.maxlen


def suits(tracer: Any) -> bool:
    """Return whether all fields of this SDK's spans, and of their contexts, are set here."""
    context, flags = SpanContext(1, 2, False), TraceFlags(1)
    if tuple(span_context(1, 2, flags, None)) != tuple(SpanContext(1, 2, False, flags)):
        return False
    own = AgentSpan(tracer, "", context, None, SpanKind.INTERNAL, None, True, True)
    return vars(_Span("", context, resource=tracer.resource, limits=tracer._span_limits)).keys() <= vars(own).keys()
