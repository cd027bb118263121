"""An exchange of aiohttp's server: a request and its response, as a span; and the messages of a WebSocket."""

from __future__ import annotations

import sys

from sw_agent.http import (
    METHODS,
    any_of,
    captured_headers,
    host_and_port,
    method_attributes,
    printable,
    redacted_query,
    span_name,
)
from sw_agent.plugin import Entry, inside, record_error, set_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from sw_agent.plugin import Plugin

    # Method, version of HTTP, whether it is HTTPS, host, user agent.
    Alike = tuple[str, tuple[int, int], bool, str | None, str | None]

SERVER_ERROR = 500
EXCHANGE = "_sw_exchange"  # among the attributes of a request
MOST_REMEMBERED, LONGEST_REMEMBERED = 256, 512  # requests that are alike, and the characters in which they are
# Not the very strings that a program writes: `update_name("GET")` shall win, too.
NAMES = {method: "".join(tuple(method)) for method in METHODS}
UNKNOWN = "".join(tuple(span_name("")))
VERSIONS = {(1, 0): "1.0", (1, 1): "1.1"}


class Recording:
    """What the options say, prepared, with what spans are made of. `settings` are those that it was made from."""

    def __init__(self, plugin: Plugin) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import INVALID_SPAN, SpanKind, set_span_in_context
        from opentelemetry.trace.propagation import _SPAN_KEY

        self.context_of = Context
        self.span_key = _SPAN_KEY
        self.nothing = Context()
        self.known_attributes: dict[Alike, dict[str, Any]] = {}
        self.plugin = plugin
        self.settings = source = plugin.settings
        self.refused = sys.modules["aiohttp.web_protocol"].ERROR  # what stands for a message that is none
        self.is_excluded = any_of(source["exclude"])
        self.request_headers = captured_headers("request", source["request_headers"])
        self.response_headers = captured_headers("response", source["response_headers"])
        self.query = source["query"]
        self.server = SpanKind.SERVER
        self.consumer = SpanKind.CONSUMER
        self.no_span = INVALID_SPAN
        self.set_span_in_context = set_span_in_context

    def learn(self, alike: Alike) -> dict[str, Any]:
        """Return the attributes of all requests that are alike in these; remember as many as no client can swell."""
        attributes = _attributes_of_all(alike)
        method, _, _, host, agent = alike
        if len(method) + len(host or "") + len(agent or "") <= LONGEST_REMEMBERED:
            if len(self.known_attributes) >= MOST_REMEMBERED:
                self.known_attributes.clear()
            self.known_attributes[alike] = attributes
        return attributes


def exchange_of(request: Any) -> Exchange | None:
    """Return the exchange that a request itself is the request of."""
    exchange: Exchange | None = getattr(request, EXCHANGE, None)
    return exchange


class Exchange(Entry):
    """A request and its response, as a span. `context` is that of the handler, and the current one until `leave`."""

    __slots__ = (
        "_failed",
        "_name",
        "_path",
        "_recording",
        "_request",
        "_route",
        "_span",
        "context",
        "messages",
        "response",
    )

    def __init__(self, request: Any, context: Context, recording: Recording) -> None:
        message = request._message
        self._recording = recording
        self._request = request
        self._path = path_of(message)
        self._route: str | None = None
        self._failed = False
        self._name = NAMES.get(message.method, UNKNOWN)
        self.response: Any = None
        self.messages: Messages | None = None
        span = recording.plugin.tracer.start_span(
            self._name, context, recording.server, attributes_of(request, self._path, recording)
        )
        if span.is_recording():
            self.context = recording.context_of({**context, recording.span_key: span})
        else:
            self.context = inside(span, context)
        self._span: Span | None = span
        object.__setattr__(request, EXCHANGE, self)  # aiohttp's warns of attributes that it does not know
        super().__init__(self.context)
        self.enter()

    def leave(self, error: BaseException | None = None) -> None:
        """End what there is, and leave the context: the handler has ended, and its response is written."""
        try:
            if isinstance(error, Exception):  # aiohttp will not answer it
                self.fail(error)
            self.end()
            if self.messages is not None:
                self.messages.end()
            object.__delattr__(self._request, EXCHANGE)
        finally:
            super().leave(error)

    def fail(self, error: BaseException) -> None:
        """Say that the handler, or the writing of its response, has failed; that the client has gone is no failure."""
        if self._failed or (isinstance(error, ConnectionError) and self._is_disconnected()):
            return
        self._failed = True
        span = self._span
        if span is None and self.messages is not None:
            span = self.messages.span
        if span is not None and span.is_recording():
            record_error(span, error)

    def end(self) -> None:
        """End the span, unless it has ended."""
        span, self._span = self._span, None
        if span is None:
            return
        try:
            if span.is_recording():
                self._describe(span)
        finally:
            span.end()

    def _is_disconnected(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def _describe(self, span: Any) -> None:
        attributes: dict[str, Any] = {}
        route = self._route = route_of(self._request)
        if route is not None:
            attributes["http.route"] = route
            if getattr(span, "name", None) is self._name:
                span.update_name(f"{self._name} {route}")
        response = self.response
        if response is not None and self._request.writer.output_size > 0:
            status = response.status
            attributes["http.response.status_code"] = status
            if status >= SERVER_ERROR and not self._failed:
                from opentelemetry.trace import StatusCode

                attributes["error.type"] = str(status)
                span.set_status(StatusCode.ERROR)
            if self._recording.response_headers is not None:
                attributes.update(self._recording.response_headers(response.headers))
        if attributes:
            set_attributes(span, attributes)

    def contain(self, place: str, error: BaseException) -> None:
        """Let a failure of ours end here."""
        self._recording.plugin.contain(place, error)

    def message_span(self) -> tuple[Span, Context]:
        """Return a span for one message of a WebSocket, the root of a trace of its own, and its context."""
        from opentelemetry.trace import Link, get_current_span

        recording, handshake = self._recording, get_current_span(self.context).get_span_context()
        context = recording.set_span_in_context(recording.no_span, self.context)
        attributes = {"url.path": self._path, "network.protocol.name": "websocket"}
        if self._route is not None:
            attributes["http.route"] = self._route
        span = recording.plugin.tracer.start_span(
            f"WEBSOCKET {self._route}" if self._route is not None else "WEBSOCKET",
            context,
            kind=recording.consumer,
            attributes=attributes,
            links=[Link(handshake)] if handshake.is_valid else [],
        )
        return span, inside(span, context)


class Messages:
    """A WebSocket's queue of messages: what is done between two reads is the work on one message.

    The span of a message is the current one in the task that reads. It ends with the next read, or with the handler.
    """

    def __init__(self, reader: Any, exchange: Exchange) -> None:
        self._reader = reader
        self._exchange = exchange
        self._entry: Entry | None = None
        self.span: Span | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self) -> Any:
        """Wait for a message, and start its span."""
        self.end()
        message = await self._reader.read()
        try:
            if message.type.name in ("TEXT", "BINARY"):
                self.span, context = self._exchange.message_span()
                self._entry = Entry(context)
                self._entry.enter()
        except Exception as error:
            self._exchange.contain("a message of a WebSocket", error)
        return message

    def end(self) -> None:
        """End the span of the message before."""
        span, entry, self.span, self._entry = self.span, self._entry, None, None
        if entry is not None:
            entry.leave()
        try:
            if span is not None:
                span.end()
        except Exception as error:
            self._exchange.contain("the end of a message of a WebSocket", error)


# What is recorded


def attributes_of(request: Any, path: str, recording: Recording) -> dict[str, Any]:
    """Return what the conventions say of a request."""
    message, headers = request._message, request.headers
    alike: Alike = (
        message.method,
        message.version,
        request._transport_sslcontext is not None,
        headers.get("Host"),
        headers.get("User-Agent"),
    )
    attributes = (recording.known_attributes.get(alike) or recording.learn(alike)).copy()
    attributes["url.path"] = path
    peer = request._transport_peername
    if type(peer) is tuple and len(peer) > 1:
        attributes["client.address"] = attributes["network.peer.address"] = peer[0]
        attributes["network.peer.port"] = peer[1]
    if recording.query and (query := message.url.raw_query_string):
        attributes["url.query"] = printable(redacted_query(query))
    if recording.request_headers is not None:
        attributes.update(recording.request_headers(headers))
    return attributes


def _attributes_of_all(alike: Alike) -> dict[str, Any]:
    method, version, is_secure, host, agent = alike
    attributes: dict[str, Any] = method_attributes(printable(method))
    attributes["url.scheme"] = "https" if is_secure else "http"
    if version in VERSIONS:
        attributes["network.protocol.version"] = VERSIONS[version]
    if host:
        name, port = host_and_port(host)
        if name:
            attributes["server.address"] = name
            if port is not None:
                attributes["server.port"] = port
    if agent:
        attributes["user_agent.original"] = printable(agent)
    return attributes


def path_of(message: Any) -> str:
    """Return a request's path as it was sent, without query; of an absolute target its path alone."""
    target: str = message.path
    if not target.startswith("/"):
        target = message.url.raw_path
    path = target.partition("?")[0]
    return path if path.isascii() else printable(path)


def route_of(request: Any) -> str | None:
    """Return the template of the route that the request has taken, with the prefixes of the applications around it."""
    match = getattr(request, "_match_info", None)
    resource = match.route.resource if match is not None else None
    return (resource.canonical or None) if resource is not None else None
