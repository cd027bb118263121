"""How requests travel in aiohttp's server: `RequestHandler._handle_request` handles each in a task of its own.

That coroutine runs the application, or the handler of a low-level `web.Server`, and writes the response. Around it is
the request's span. It ends with the last byte of the response, or where the client leaves before (`connection_lost`):
a handler that goes on then is in the context of a span that has ended, and so is the handler of a WebSocket after the
handshake, with which its span ends. What they start hangs under that span for as long as `stale_parent_after` says.

A request that the parser refuses (400) is none yet: it has no span. One that OpenTelemetry's own instrumentation
traces, by a middleware of the application, has none beside that one's.
"""

from __future__ import annotations

import sys

from sw_agent.carrier import reader
from sw_agent.http import context_in
from sw_agent.plugin import Entry, Option, Plugin

from ._aiohttp_exchange import EXCHANGE, Exchange, Messages, Recording, exchange_of, path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

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

OPENTELEMETRYS = "opentelemetry.instrumentation.aiohttp_server"

_prepared: Recording | None = None


def recording() -> Recording:
    """Return what the options say now."""
    global _prepared
    if _prepared is None or _prepared.settings is not plugin.settings:
        _prepared = Recording(plugin)
    return _prepared


@plugin.before("aiohttp.web:run_app")
@plugin.before("aiohttp.web_server:Server.__init__")
def make_ready(_server: object, _args: Any, _kwargs: Any) -> None:
    """Import what the first request needs before the server listens, best before the loop runs: all would wait."""
    recording()
    reader()
    plugin.tracer  # noqa: B018  it is made here


@plugin.within("aiohttp.web_protocol:RequestHandler._handle_request")
def handle_in_a_span(protocol: Any, args: tuple[Any, ...], _kwargs: Any) -> Entry | Exchange | None:
    """Run the handler, and write its response, in the context that the request's headers bring."""
    request = args[0]
    message = request._message
    recorded = recording()
    if message is recorded.refused:
        return None
    context = context_in(message.headers) or recorded.nothing
    if (recorded.is_excluded is not None and recorded.is_excluded(path_of(message))) or (
        OPENTELEMETRYS in sys.modules and _is_left_to_opentelemetry(protocol._request_handler)
    ):
        entry = Entry(context)
        entry.enter()
        return entry
    return Exchange(request, context, recorded)


@plugin.before("aiohttp.web_protocol:RequestHandler.handle_error")
def fail_with_the_handler(_protocol: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Describe on the span what the handler has raised; aiohttp does not pass on a timeout, but is handling it."""
    exchange = exchange_of(args[0] if args else kwargs["request"])
    error = sys.exc_info()[1]
    if exchange is not None and error is not None:
        exchange.fail(error)


@plugin.before("aiohttp.web_protocol:RequestHandler.connection_lost")
def end_with_the_connection(protocol: Any, _args: Any, _kwargs: Any) -> None:
    """End the span of a request whose client does not wait for the response."""
    request = protocol._current_request
    exchange = exchange_of(request) if request is not None else None
    if exchange is not None:
        exchange.end()


@plugin.before("aiohttp.web_response:StreamResponse._start")
def remember_the_response(response: Any, args: tuple[Any, ...], _kwargs: Any) -> None:
    """Keep what is being written, for a span that ends before the handler does."""
    exchange = getattr(args[0], EXCHANGE, None) or _exchange_of_original(args[0])
    if exchange is not None:
        exchange.response = response


@plugin.intercept("aiohttp.web_ws:WebSocketResponse._post_start")
def end_with_the_handshake(
    wrapped: Callable[..., None], websocket: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """End the span of a handshake, and let the messages that follow have theirs, where the options ask for them."""
    wrapped(*args, **kwargs)
    exchange = exchange_of(args[0]) or _exchange_of_original(args[0])
    if exchange is not None:
        exchange.end()
        if plugin.settings["websocket_messages"]:
            exchange.messages = websocket._reader = Messages(websocket._reader, exchange)


def _is_left_to_opentelemetry(handler: Any) -> bool:
    """Return whether OpenTelemetry's own instrumentation makes the spans of what this handler handles."""
    middlewares = getattr(getattr(handler, "__self__", None), "middlewares", ())  # of an application
    if any(getattr(middleware, "__module__", "") == OPENTELEMETRYS for middleware in middlewares):
        plugin.leaves_spans_to(OPENTELEMETRYS)
        return True
    return False


def _exchange_of_original(request: Any) -> Exchange | None:
    """Return the exchange of the request that this one is a clone of."""
    original = getattr(request.protocol, "_current_request", None)
    return exchange_of(original) if original is not None else None
