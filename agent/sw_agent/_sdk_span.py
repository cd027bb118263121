"""The SDK's span, in a quarter of the time where nothing is out of the ordinary; all else is the SDK's own."""

from __future__ import annotations

from _thread import RLock, allocate_lock
from time import time_ns

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, _Span
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode

from ._span_context import is_tuple_of_known_parts
from .export.pipeline import Pipeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Event
    from opentelemetry.trace import Link

_UNSET = Status(StatusCode.UNSET)
# Of these types, no subclass of them, every value may be an attribute as it is.
_PLAIN = frozenset((str, bool, int, float))
_TEXT = frozenset((str,))
_SPAN_ID = 1  # its place in the tuple that a SpanContext is


def plain_copy(attributes: Any, /) -> dict[str, Any] | None:
    """Return a copy of attributes that need no check of keys and values, None of others."""
    if (
        type(attributes) is dict
        and _PLAIN.issuperset(map(type, attributes.values()))
        and _TEXT.issuperset(map(type, attributes))
        and "" not in attributes
    ):
        return attributes.copy()
    return None


try:
    from .export._plain_spans import plain_copy as _plain_copy
except ImportError:  # there was no compiler
    _plain_copy = plain_copy


class AgentSpan(_Span):
    """A span of the agent's tracer, with no links at first.

    Its lists of events and links are made when something goes into them: most spans have none, and an empty list has
    room for many. Where nobody but the agent's pipeline hears of its end it goes there itself, not a copy of it.
    """

    _attributes: Any  # a BoundedAttributes
    _context: Any  # a SpanContext
    _span_processor: Any  # a SpanProcessor, of several
    # What nearly all spans have for all their life, or until they end, is not set for each.
    _end_time: int | None = None
    _events: Any = ()
    _links: Any = ()
    _status = _UNSET
    _trace_config = None
    _record_end_metrics = None
    _listeners: Any = None  # to its end, when it began: the agent's pipeline alone

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
        listeners = self._listeners
        if listeners is not None and listeners is self._span_processor._span_processors:
            with self._lock:
                if ends := self._end_time is None:
                    self._end_time = end_time if end_time is not None else time_ns()
                    self._attributes._immutable = True
            if ends:
                listeners[0].queue(self, self._context[_SPAN_ID])
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


def started(
    tracer: Any,
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    kind: SpanKind,
    attributes: Any,
    start_time: int | None,
    record_exception: bool,
    set_status_on_exception: bool,
    parent_context: Context | None,
) -> AgentSpan:
    """Return a new span: do what the SDK's constructor and `start` do, for a span that no other thread has yet."""
    span: Any = object.__new__(AgentSpan)
    limits = tracer._span_limits
    span._name = name
    span._context = context
    span._kind = kind
    span._instrumentation_info = tracer.instrumentation_info
    span._instrumentation_scope = tracer._instrumentation_scope
    span._parent = parent
    span._attributes = _bounded(limits, attributes)
    span._resource = tracer.resource
    span._sampler = tracer.sampler
    span._record_exception = record_exception
    span._set_status_on_exception = set_status_on_exception
    span._span_processor = processor = tracer.span_processor
    span._limits = limits
    span._lock = allocate_lock()
    span._start_time = start_time if start_time is not None else time_ns()
    listeners: Any = getattr(processor, "_span_processors", None)
    if listeners is _pipeline_alone or _is_pipeline_alone(listeners):
        span._listeners = listeners
        listeners[0].note(span, context[_SPAN_ID])
    else:
        processor.on_start(span, parent_context=parent_context)
    return span  # type: ignore[no-any-return]


_pipeline_alone: Any = object()  # the processors of a provider that has no other: a tuple, made anew with each


def _is_pipeline_alone(listeners: Any) -> bool:
    global _pipeline_alone
    if not listeners or len(listeners) != 1 or type(listeners[0]) is not Pipeline:
        return False
    _pipeline_alone = listeners
    return True


class Attributes(BoundedAttributes):
    """Attributes that needed no check: the SDK's, without its constructor's checks, and with a lock for who asks."""

    dropped = 0
    max_value_len = None
    _immutable = False

    def __init__(self, most: int | None, attributes: dict[str, Any]) -> None:
        self.maxlen = most
        self._dict = attributes

    def __getattr__(self, name: str) -> Any:
        if name == "_lock":
            return vars(self).setdefault(name, RLock())
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _bounded(limits: SpanLimits, attributes: Any) -> BoundedAttributes:
    most, longest = limits.max_span_attributes, limits.max_span_attribute_length
    if longest is None:
        own = _plain_copy(attributes) if attributes else {}
        if own is not None and (most is None or len(own) <= most):
            return Attributes(most, own)
    return BoundedAttributes(most, attributes, False, longest)


def _has_room(bounded: Any) -> bool:
    return bounded.maxlen is None or len(bounded._dict) < bounded.maxlen


def suits(tracer: Any) -> bool:
    """Return whether all fields of this SDK's spans, of their attributes and of their contexts, are known here."""
    context = SpanContext(1, 2, False)
    if not is_tuple_of_known_parts() or NonRecordingSpan(context)._context is not context:
        return False
    theirs = _Span("", context, attributes={"a": 1}, resource=tracer.resource, limits=tracer._span_limits)
    silent = _Silent(tracer)
    own = started(silent, "", context, None, SpanKind.INTERNAL, {"a": 1}, 1, True, True, None)
    own._attributes._lock  # noqa: B018  it is made here
    return _are_known(theirs, own) and _are_known(theirs._attributes, own._attributes)


class _Silent:
    """A tracer of whose spans nobody hears."""

    span_processor = SpanProcessor()

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)


def _are_known(theirs: object, own: object) -> bool:
    return vars(theirs).keys() <= vars(own).keys() | vars(type(own)).keys()
