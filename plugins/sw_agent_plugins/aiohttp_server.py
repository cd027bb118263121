"""How requests travel in aiohttp's server: `RequestHandler._handle_request` handles each in a task of its own.

That coroutine runs the application, or the handler of a low-level `web.Server`, and writes the response. Around it is
the request's span. It ends with the last byte of the response, or where the client leaves before (`connection_lost`):
a handler that goes on then is in the context of a span that has ended, and so is the handler of a WebSocket after the
handshake, with which its span ends. What they start hangs under that span for as long as `stale_parent_after` says.

A request that the parser refuses (400) is none yet: it has no span.
"""

from __future__ import annotations

import sys

from sw_agent.carrier import header_names
from sw_agent.http import (
    METHODS,
    CapturedHeaders,
    any_of,
    context_in,
    host_and_port,
    method_attributes,
    printable,
    redacted_query,
    span_name,
)
from sw_agent.plugin import Entry, Option, Plugin, describe_error, inside, record_exception, set_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

plugin = Plugin(
    "aiohttp-server",
    requires="aiohttp>=3.9,<4",
    options=[
        Option("exclude", [], "paths without a span, such as /health or /static/*; * is any text, also with a /"),
        Option("request_headers", [], "headers to record of requests; those that hold secrets are redacted"),
        Option("response_headers", [], "headers to record of responses; those that hold secrets are redacted"),
        Option("query", False, "record the query of the URL, with the values of sensitive parameters redacted"),
        Option("websocket_messages", False, "a span, in a trace of its own, for each message a WebSocket receives"),
    ],
)

SERVER_ERROR = 500
# Not the very strings that a program writes: `update_name("GET")` shall win, too.
NAMES = {method: "".join(tuple(method)) for method in METHODS}
UNKNOWN = "".join(tuple(span_name("")))
METHOD_ATTRIBUTES = {method: method_attributes(method) for method in METHODS}
VERSIONS = {(1, 0): "1.0", (1, 1): "1.1"}


class Settings:
    """The plugin's options, made ready once: `source` is the values that they were made from."""

    def __init__(self, exclude: list[str], request_headers: list[str], response_headers: list[str]) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import INVALID_SPAN, SpanKind, set_span_in_context

        self.nothing = Context()
        self.source = (exclude, request_headers, response_headers)
        self.is_excluded = any_of(exclude)
        self.request_headers = CapturedHeaders("request", request_headers)
        self.response_headers = CapturedHeaders("response", response_headers)
        self.server = SpanKind.SERVER
        self.consumer = SpanKind.CONSUMER
        self.no_span = INVALID_SPAN
        self.set_span_in_context = set_span_in_context


_ready: Settings | None = None


def settings() -> Settings:
    """Return the options as they are now."""
    global _ready
    given = plugin.settings
    source = (given["exclude"], given["request_headers"], given["response_headers"])
    if _ready is None or _ready.source != source:
        _ready = Settings(*source)
    return _ready


@plugin.before("aiohttp.web:run_app")
@plugin.before("aiohttp.web_server:Server.__init__")
def make_ready(_server: object, _args: Any, _kwargs: Any) -> None:
    """Import what the first request needs before the server listens, best before the loop runs: all would wait."""
    settings()
    header_names()
    plugin.tracer  # noqa: B018  it is made here


@plugin.intercept("aiohttp.web_protocol:RequestHandler._handle_request")
async def handle_in_a_span(
    wrapped: Callable[..., Awaitable[Any]], _protocol: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the handler, and write its response, in the context that the request's headers bring."""
    request = args[0]
    message = request._message
    if message is sys.modules["aiohttp.web_protocol"].ERROR:
        return await wrapped(*args, **kwargs)
    ready = settings()
    context = context_in(message.headers).context or ready.nothing
    if ready.is_excluded is not None and ready.is_excluded(path_of(message)):
        with Entry(context):
            return await wrapped(*args, **kwargs)
    exchange = vars(request)["_sw_exchange"] = Exchange(request, context, ready)
    entry = Entry(exchange.context)
    entry.enter()
    try:
        return await wrapped(*args, **kwargs)
    except Exception as error:  # aiohttp will not answer it
        exchange.fail(error)
        raise
    finally:
        del vars(request)["_sw_exchange"]
        exchange.close()
        entry.leave()


@plugin.before("aiohttp.web_protocol:RequestHandler.handle_error")
def fail_with_the_handler(_protocol: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Describe on the span what the handler has raised; aiohttp does not pass on a timeout, but is handling it."""
    exchange = vars(args[0] if args else kwargs["request"]).get("_sw_exchange")
    error = sys.exc_info()[1]
    if exchange is not None and error is not None:
        exchange.fail(error)


@plugin.before("aiohttp.web_protocol:RequestHandler.connection_lost")
def end_with_the_connection(protocol: Any, _args: Any, _kwargs: Any) -> None:
    """End the span of a request whose client does not wait for the response."""
    request = protocol._current_request
    exchange = vars(request).get("_sw_exchange") if request is not None else None
    if exchange is not None:
        exchange.end()


@plugin.before("aiohttp.web_response:StreamResponse._start")
def remember_the_response(response: Any, args: tuple[Any, ...], _kwargs: Any) -> None:
    """Keep what is being written, for a span that ends before the handler does."""
    exchange = _exchange_of(args[0])
    if exchange is not None:
        exchange.response = response


@plugin.intercept("aiohttp.web_ws:WebSocketResponse._post_start")
def end_with_the_handshake(
    wrapped: Callable[..., None], websocket: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """End the span of a handshake, and let the messages that follow have theirs, where the options ask for them."""
    wrapped(*args, **kwargs)
    exchange = _exchange_of(args[0])
    if exchange is not None:
        exchange.end()
        if plugin.settings["websocket_messages"]:
            exchange.messages = websocket._reader = Messages(websocket._reader, exchange)


def _exchange_of(request: Any) -> Exchange | None:
    """Return the exchange of a request, or of the one that it is a clone of."""
    exchange: Exchange | None = vars(request).get("_sw_exchange")
    if exchange is None and (original := getattr(request.protocol, "_current_request", None)) is not None:
        exchange = vars(original).get("_sw_exchange")
    return exchange


# Spans


class Exchange:
    """A request and its response, as a span. `context` is that of the handler."""

    __slots__ = (
        "_failed",
        "_name",
        "_path",
        "_ready",
        "_request",
        "_route",
        "_span",
        "context",
        "messages",
        "response",
    )

    def __init__(self, request: Any, context: Context, ready: Settings) -> None:
        message = request._message
        self._ready = ready
        self._request = request
        self._path = path_of(message)
        self._route: str | None = None
        self._failed = False
        self._name = NAMES.get(message.method, UNKNOWN)
        self.response: Any = None
        self.messages: Messages | None = None
        span = plugin.start_span(self._name, context, ready.server, attributes_of(request, self._path, ready))
        self.context = ready.set_span_in_context(span, context) if span.is_recording() else inside(span, context)
        self._span: Span | None = span

    def fail(self, error: BaseException) -> None:
        """Say that the handler, or the writing of its response, has failed; that the client has gone is no failure."""
        if self._failed or (isinstance(error, ConnectionError) and self._is_disconnected()):
            return
        self._failed = True
        span = self._span
        if span is None and self.messages is not None:
            span = self.messages.span
        if span is not None and span.is_recording():
            describe_error(span, error)
            record_exception(span, error)

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

    def close(self) -> None:
        """End what there is: the handler has ended."""
        self.end()
        if self.messages is not None:
            self.messages.end()

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
            if self._ready.response_headers:
                headers = response.headers
                attributes.update(self._ready.response_headers.attributes(lambda name: headers.getall(name, ())))
        if attributes:
            set_attributes(span, attributes)

    def message_span(self) -> tuple[Span, Context]:
        """Return a span for one message of a WebSocket, the root of a trace of its own, and its context."""
        from opentelemetry.trace import Link, get_current_span

        ready, handshake = self._ready, get_current_span(self.context).get_span_context()
        context = ready.set_span_in_context(ready.no_span, self.context)
        attributes = {"url.path": self._path, "network.protocol.name": "websocket"}
        if self._route is not None:
            attributes["http.route"] = self._route
        span = plugin.tracer.start_span(
            f"WEBSOCKET {self._route}" if self._route is not None else "WEBSOCKET",
            context,
            kind=ready.consumer,
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
        if message.type.name in ("TEXT", "BINARY"):
            self.span, context = self._exchange.message_span()
            self._entry = Entry(context)
            self._entry.enter()
        return message

    def end(self) -> None:
        """End the span of the message before."""
        span, entry, self.span, self._entry = self.span, self._entry, None, None
        if entry is not None:
            entry.leave()
        if span is not None:
            span.end()


# What is recorded


def attributes_of(request: Any, path: str, ready: Settings) -> dict[str, Any]:
    """Return what the conventions say of a request."""
    message, headers = request._message, request.headers
    method = message.method
    attributes: dict[str, Any] = dict(METHOD_ATTRIBUTES.get(method) or method_attributes(printable(method)))
    attributes["url.path"] = path
    attributes["url.scheme"] = "https" if request._transport_sslcontext else "http"
    version = VERSIONS.get(message.version)
    if version is not None:
        attributes["network.protocol.version"] = version
    host = headers.get("Host")
    if host:
        name, port = host_and_port(host)
        if name:
            attributes["server.address"] = name
            if port is not None:
                attributes["server.port"] = port
    peer = request._transport_peername
    if type(peer) is tuple and len(peer) > 1:
        attributes["client.address"] = attributes["network.peer.address"] = peer[0]
        attributes["network.peer.port"] = peer[1]
    agent = headers.get("User-Agent")
    if agent:
        attributes["user_agent.original"] = printable(agent)
    if plugin.settings["query"] and (query := message.url.raw_query_string):
        attributes["url.query"] = printable(redacted_query(query))
    if ready.request_headers:
        attributes.update(ready.request_headers.attributes(lambda name: headers.getall(name, ())))
    return attributes


def path_of(message: Any) -> str:
    """Return a request's path as it was sent, without query; of an absolute target its path alone."""
    target: str = message.path
    if not target.startswith("/"):
        target = message.url.raw_path
    return printable(target.partition("?")[0])


def route_of(request: Any) -> str | None:
    """Return the template of the route that the request has taken, with the prefixes of the applications around it."""
    match = getattr(request, "_match_info", None)
    resource = match.route.resource if match is not None else None
    return (resource.canonical or None) if resource is not None else None
