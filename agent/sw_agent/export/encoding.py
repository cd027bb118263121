"""Spans as OTLP requests, written straight into bytes, whatever the program has put into them.

The messages are `trace/v1` and `common/v1` of https://github.com/open-telemetry/opentelemetry-proto; a field that has
the default value of its type is left out, as protobuf does. What comes again and again (resources, scopes, names, keys,
pairs of key and text) is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from struct import Struct
from typing import Any, NamedTuple

from opentelemetry.trace import SpanKind

from .rows import clean

try:
    from ._plain_spans import encode
except ImportError:  # there was no compiler

    def encode(_span: ReadableSpan, /) -> bytes | None:
        """Leave all of them to the Python code."""
        return None


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link
    from opentelemetry.trace.status import Status

Ends = tuple[bytes, bytes]  # what stands before and after the spans of a resource, or of a scope

LARGEST = 2**20 - 2**14  # bytes: a collector takes 4 MiB by grpc unless it is told otherwise, nginx 1 MiB by HTTP
LONGEST_TEXT = 2**12  # characters, where a span would else take more than that
MOST_REMEMBERED = 1024  # names, keys, resources, scopes
MOST_VALUES = 64  # that are remembered of one key, texts of at most
LONGEST_REMEMBERED = 128  # characters

_shared_of = attrgetter("_resource", "_instrumentation_scope")  # the SDK's properties are functions in Python
_64_BITS = 2**64 - 1
_TOO_LONG = 2**63
_LENGTHS = tuple(bytes((length,)) for length in range(128))
_DOUBLE = Struct("<d").pack
_KINDS = {kind: bytes((0x30, kind.value + 1)) for kind in SpanKind}
# Flags say that it is known whether the parent, or the span that a link points to, is of another process; and that.
_LOCAL_PARENT, _REMOTE_PARENT = b"\x85\x01\x00\x01\x00\x00", b"\x85\x01\x00\x03\x00\x00"
_LOCAL_LINK, _REMOTE_LINK = b"\x35\x00\x01\x00\x00", b"\x35\x00\x03\x00\x00"


class Request(NamedTuple):
    """A request to a collector, encoded; it stands for the next `spans` spans of a batch, of which some are `lost`."""

    body: bytes
    spans: int
    lost: int = 0


class Encoder:
    """Encodes spans; used by one thread at a time, for what it remembers."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[str | int | None, bytes]] = {}
        self._names: dict[str, bytes] = {}
        self._shared: dict[int, tuple[object, Ends]] = {}  # by `id`, with the object, so that no other one gets it

    def requests(self, spans: Iterable[ReadableSpan]) -> Iterator[Request]:
        """Encode spans, in their order, into requests of no more than `LARGEST` bytes, or of one span that takes more.

        Where one span takes more, its texts are cut. What OTLP cannot hold, such as integers beyond 64 bits, becomes
        text.
        """
        groups: dict[Ends, dict[Ends, list[bytes]]] = {}
        group: list[bytes] = []
        before: tuple[object, object] = (self, self)
        size = count = 0
        for span in spans:
            body = encode(span)
            if body is None or len(body) > LARGEST:
                body = self._body(span, too_large=body is not None)
            if count and (body is None or size + len(body) > LARGEST):
                yield Request(_joined(groups), count)
                groups, before, size, count = {}, (self, self), 0, 0
            if body is None:
                yield Request(b"", 1, lost=1)
                continue
            resource, scope = _shared_of(span)
            if resource is not before[0] or scope is not before[1]:
                before = resource, scope
                scopes = groups.setdefault(self._once(resource, self._resource), {})
                group = scopes.setdefault(self._once(scope, self._scope), [])
            group.append(body)
            size += len(body)
            count += 1
        if count:
            yield Request(_joined(groups), count)

    def _body(self, span: ReadableSpan, too_large: bool) -> bytes | None:
        try:
            if not too_large and len(body := self._span(span)) <= LARGEST:
                return body
            return self._span(span, cut=True)
        except Exception:  # an object of the program's raises when it is looked at
            return None

    def _once(self, shared: Any, encode: Callable[[Any], Ends]) -> Ends:
        """Return what is encoded of an object that many spans share."""
        known = self._shared.get(id(shared))
        if known is None:
            if len(self._shared) >= MOST_REMEMBERED:
                self._shared.clear()
            known = self._shared[id(shared)] = shared, encode(shared)
        return known[1]

    def _resource(self, resource: Resource) -> Ends:
        parts: list[bytes] = []
        self._attributes(parts, b"\x0a", resource.attributes)
        return _field(b"\x0a", b"".join(parts)), _text(b"\x1a", resource.schema_url)

    def _scope(self, scope: InstrumentationScope | None) -> Ends:
        if scope is None:
            return b"\x0a\x00", b""
        parts = [_text(b"\x0a", scope.name), _text(b"\x12", scope.version)]
        self._attributes(parts, b"\x1a", scope.attributes or {})
        return _field(b"\x0a", b"".join(parts)), _text(b"\x1a", scope.schema_url)

    def _span(self, span: ReadableSpan, cut: bool = False) -> bytes:
        """Return a field `ScopeSpans.spans`."""
        context, parent, name = span.context, span.parent, span.name
        parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
        if context.trace_state:
            parts.append(_text(b"\x1a", ",".join(f"{key}={value}" for key, value in context.trace_state.items())))
        if parent is not None:
            parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
        parts.append(self._names.get(name) or self._name(_cut(name) if cut else name))
        parts.append(_KINDS[span.kind])
        parts.append(_time(b"\x39", span.start_time))
        parts.append(_time(b"\x41", span.end_time))
        # The properties of these three make a copy at each call.
        attributes: Any = getattr(span, "_attributes", None) or span.attributes
        events: Any = span._events if hasattr(span, "_events") else span.events
        links: Any = span._links if hasattr(span, "_links") else span.links
        self._attributes(parts, b"\x4a", attributes, cut)
        if dropped := getattr(attributes, "dropped", 0):
            parts.append(b"\x50" + _varint(dropped))
        for event in events:
            parts.append(self._event(event, cut))
        if dropped := getattr(events, "dropped", 0):
            parts.append(b"\x60" + _varint(dropped))
        for link in links:
            parts.append(self._link(link, cut))
        if dropped := getattr(links, "dropped", 0):
            parts.append(b"\x70" + _varint(dropped))
        parts.append(_status(span.status, cut))
        parts.append(_REMOTE_PARENT if parent is not None and parent.is_remote else _LOCAL_PARENT)
        return _field(b"\x12", b"".join(parts))

    def _event(self, event: Event, cut: bool) -> bytes:
        parts = [_time(b"\x09", event.timestamp), _text(b"\x12", _cut(event.name) if cut else event.name)]
        self._attributes(parts, b"\x1a", event.attributes, cut)
        if event.dropped_attributes:
            parts.append(b"\x20" + _varint(event.dropped_attributes))
        return _field(b"\x5a", b"".join(parts))

    def _link(self, link: Link, cut: bool) -> bytes:
        context = link.context
        parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
        self._attributes(parts, b"\x22", link.attributes, cut)
        if link.dropped_attributes:
            parts.append(b"\x28" + _varint(link.dropped_attributes))
        parts.append(_REMOTE_LINK if context.is_remote else _LOCAL_LINK)
        return _field(b"\x6a", b"".join(parts))

    def _attributes(self, parts: list[bytes], tag: bytes, attributes: Any, cut: bool = False) -> None:
        """Append attributes as fields `KeyValue` of that tag."""
        if not attributes:
            return
        keys = self._keys
        plain = getattr(attributes, "_dict", attributes)
        for key, value in plain.copy().items() if hasattr(plain, "copy") else list(plain.items()):
            kind = type(value)
            pairs = keys.get(key) or self._key(key)
            pair = pairs.get(value) if kind is str or kind is int else None
            if pair is None:
                pair = _with_length(pairs[None] + _field(b"\x12", _value(_cut(value) if cut else value)))
                if len(pairs) < MOST_VALUES and (kind is int or (kind is str and len(value) <= LONGEST_REMEMBERED)):
                    pairs[value] = pair
            parts += (tag, pair)

    def _key(self, key: str) -> dict[str | int | None, bytes]:
        """Begin to remember the pairs of a key and its values, as `KeyValue`s with their length; at None, the key."""
        if len(self._keys) >= MOST_REMEMBERED:
            self._keys.clear()
        found = self._keys[key] = {None: _text(b"\x0a", key)}
        return found

    def _name(self, name: str) -> bytes:
        encoded = _text(b"\x2a", name)
        if type(name) is str and len(name) <= LONGEST_REMEMBERED:
            if len(self._names) >= MOST_REMEMBERED:
                self._names.clear()
            self._names[name] = encoded
        return encoded


def _joined(groups: Mapping[Ends, Mapping[Ends, Sequence[bytes]]]) -> bytes:
    """Return an `ExportTraceServiceRequest` of encoded spans, grouped by the ends of `ResourceSpans`, `ScopeSpans`."""
    parts = []
    for resource, scopes in groups.items():
        inner = [_field(b"\x12", b"".join((scope[0], *spans, scope[1]))) for scope, spans in scopes.items()]
        parts.append(_field(b"\x0a", b"".join((resource[0], *inner, resource[1]))))
    return b"".join(parts)


def _status(status: Status | None, cut: bool) -> bytes:
    if status is None:
        return b""
    message = _text(b"\x12", _cut(status.description) if cut else status.description)
    code = status.status_code.value
    return _field(b"\x7a", message + b"\x18" + _LENGTHS[code] if code else message)


def _value(value: Any) -> bytes:
    """Return an `AnyValue`."""
    kind = type(value)
    if kind is str:
        return _field(b"\x0a", _utf8(value))
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        if -_TOO_LONG <= value < _TOO_LONG:
            return b"\x18" + _varint(value & _64_BITS)
        return _value(clean(value))
    if kind is float:
        return b"\x21" + _DOUBLE(value)
    if value is None:
        return b""
    if isinstance(value, bytes):
        return _field(b"\x3a", value)
    if isinstance(value, Mapping):
        pairs = (_text(b"\x0a", str(key)) + _field(b"\x12", _value(item)) for key, item in value.items())
        return _field(b"\x32", b"".join(_field(b"\x0a", pair) for pair in pairs))
    for base in (str, int, float):
        if isinstance(value, base):
            return _value(base(value))
    if isinstance(value, Sequence):
        return _field(b"\x2a", b"".join(_field(b"\x0a", _value(item)) for item in value))
    return _value(clean(value))


def _text(tag: bytes, text: Any) -> bytes:
    """Return a field of text, nothing for none."""
    return _field(tag, _utf8(text if isinstance(text, str) else str(clean(text)))) if text else b""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return text.encode("utf-8", "replace")


def _time(tag: bytes, nanoseconds: int | None) -> bytes:
    if not nanoseconds:
        return b""
    return tag + max(0, min(nanoseconds, _64_BITS)).to_bytes(8, "little")


def _field(tag: bytes, content: bytes) -> bytes:
    """Return a field that has a length."""
    return tag + _with_length(content)


def _with_length(content: bytes) -> bytes:
    length = len(content)
    return (_LENGTHS[length] if length < 128 else _varint(length)) + content


def _varint(number: int) -> bytes:
    if number < 128:
        return _LENGTHS[number]
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _cut(value: Any) -> Any:
    """Return a value with all texts cut that are longer than `LONGEST_TEXT`."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if isinstance(value, bytes):
        return value[: LONGEST_TEXT // 4]
    if isinstance(value, Mapping):
        return {_cut(key): _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list | tuple) else value
