"""Spans without the secrets that they hold, on their way to every output."""

from __future__ import annotations

from operator import is_

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link
from opentelemetry.trace.status import Status

from .._threads import calmly
from ..http import REDACTED
from .secret_values import Values

try:
    from ._plain_spans import is_known
except ImportError:  # there was no compiler

    def is_known(_span: ReadableSpan, _known: Known, /) -> bool:
        """Leave all of them to the Python code."""
        return False


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set
    from typing import Any, TypeAlias

    # A resource and a scope; keys, texts, types of values: without secrets all of them.
    Known: TypeAlias = tuple[Resource, InstrumentationScope | None, Set[str], Set[str], Set[type]] | tuple[()]

MOST_SHARED = 64


class Redaction(Values):
    """Replaces secrets in spans; used by one thread at a time.

    A span that holds secrets is replaced by a copy: the program's own processors may still look at the span itself. Of
    one that cannot be looked at only ids, times, kind and status are left.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        super().__init__(patterns)
        self._shared: dict[int, tuple[object, Any]] = {}
        self._known: Known = ()

    def spans(self, spans: Sequence[ReadableSpan], hurry: bool = True) -> Sequence[ReadableSpan]:
        """Return the spans without secrets; the very sequence where there are none."""
        through = iter(spans) if hurry else calmly(spans)
        return _unless_same([span if is_known(span, self._known) else self._span(span) for span in through], spans)

    def _span(self, span: ReadableSpan) -> ReadableSpan:
        try:
            return self._redacted(span)
        except Exception as error:
            return ReadableSpan(
                name=REDACTED,
                context=span.context,
                parent=span.parent,
                resource=Resource({}),
                attributes={"sw.redaction": f"failed: {type(error).__name__}"},
                kind=span.kind,
                status=Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
            )

    def _redacted(self, span: ReadableSpan) -> ReadableSpan:
        resource = self._once(self._resource, span.resource)
        scope = self._once(self._scope, span.instrumentation_scope)
        is_shared = resource is span.resource and scope is span.instrumentation_scope
        if is_shared:
            self._known = resource, scope, self._clean_keys, self._clean_texts, self._clean_types
            if is_known(span, self._known):
                return span
        # The properties of these three make a copy at each call.
        attributes = getattr(span, "_attributes", None) or span.attributes
        events = span.events if getattr(span, "_events", True) else ()
        links = span.links if getattr(span, "_links", True) else ()
        name, status = span.name, span.status
        clean_name = name if type(name) is str and name in self._clean_texts else self.value(name)
        clean_attributes = self.attributes(attributes)
        clean_events = _each(self._event, events) if events else events
        clean_links = _each(self._link, links) if links else links
        clean_status = self._status(status) if status.description else status
        if (
            is_shared
            and clean_name is name
            and clean_attributes is attributes
            and clean_events is events
            and clean_links is links
            and clean_status is status
        ):
            return span
        return ReadableSpan(
            name=clean_name,
            context=span.context,
            parent=span.parent,
            resource=resource,
            attributes=_counted(clean_attributes, span.dropped_attributes),
            events=_counted_list(clean_events, span.dropped_events),
            links=_counted_list(clean_links, span.dropped_links),
            kind=span.kind,
            status=clean_status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope,
        )

    def _event(self, event: Event) -> Event:
        name, attributes = self.value(event.name), self.attributes(event.attributes)
        if name is event.name and attributes is event.attributes:
            return event
        return Event(name, _counted(attributes, event.dropped_attributes), event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = self.attributes(link.attributes)
        return (
            link if attributes is link.attributes else Link(link.context, _counted(attributes, link.dropped_attributes))
        )

    def _status(self, status: Status) -> Status:
        description = self.value(status.description)
        return status if description is status.description else Status(status.status_code, description)

    def _resource(self, resource: Resource) -> Resource:
        attributes = self.attributes(resource.attributes)
        return resource if attributes is resource.attributes else Resource(attributes, resource.schema_url)

    def _scope(self, scope: InstrumentationScope | None) -> InstrumentationScope | None:
        if scope is None:
            return None
        name, attributes = self.value(scope.name), self.attributes(scope.attributes)
        if name is scope.name and attributes is scope.attributes:
            return scope
        return InstrumentationScope(name, scope.version, scope.schema_url, attributes)

    def _once(self, redacted: Callable[[Any], Any], shared: Any) -> Any:
        """Return what many spans refer to, redacted: always the same object, as outputs group spans by it."""
        known = self._shared.get(id(shared))
        if known is None:
            if len(self._shared) >= MOST_SHARED:
                self._shared.clear()
            known = self._shared[id(shared)] = (shared, redacted(shared))  # kept, so that no other gets its id
        return known[1]


def _each(redacted: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
    """Return the items redacted; the very sequence where none has changed."""
    return _unless_same([redacted(item) for item in items], items)


def _unless_same(new: list[Any], items: Sequence[Any]) -> Sequence[Any]:
    return items if all(map(is_, new, items)) else new


def _counted(attributes: Any, dropped: int) -> Any:
    """Return attributes that tell as well how many were dropped beside them."""
    if not dropped:
        return attributes
    counted = BoundedAttributes(attributes=attributes)
    counted.dropped = dropped
    return counted


def _counted_list(items: Sequence[Any], dropped: int) -> Sequence[Any]:
    if not dropped:
        return items
    counted: BoundedList[Any] = BoundedList(None)
    counted.extend(items)
    counted.dropped = dropped
    return counted
