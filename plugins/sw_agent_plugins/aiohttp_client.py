"""How a request travels in aiohttp's client: `ClientSession._request` sends it once for each redirect, and again.

Each time it asks the connector for a connection (`connect`), writes the `ClientRequest` to it and waits for the
response to `start`. This is a hop, with a span and a `traceparent` of its own; a middleware or a retry that sends the
same request again makes another one. The last hop ends with the body of the response: when its end has arrived, or when
the response is released, closed or lost with its connection. `_request` itself is left alone, so that the warnings it
gives name the program's line; its failures are seen where it closes its `TimeoutHandle`, which it does then only.

Requests of a session that OpenTelemetry's own instrumentation traces, by a `TraceConfig`, have no span beside its own.

A span is nowhere the current one: the callbacks of `trace_configs`, middlewares and resolvers are the program's, and
run in its context. A `traceparent` that the program has set is replaced: one copied from another request is wrong here.
Only that of another agent, which would lose its trace, stays.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from weakref import ref

from sw_agent.carrier import ContextCarrier
from sw_agent.http import another_wrote_parent, is_suppressed, method_attributes, span_name
from sw_agent.plugin import ContextSnapshot, Option, Plugin, inside
from sw_agent.snapshot import capture

from ._aiohttp_hop import Hop, Recording

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from opentelemetry.trace import Span

WRITTEN = "_sw_traceparent"
HOP = "_sw_hop"  # the attribute of a request, its connection and its response
OPENTELEMETRYS = "opentelemetry.instrumentation.aiohttp_client"
LONGEST_BAGGAGE = 8190  # what servers take as one header, aiohttp's among them; W3C asks for no more than 8192

plugin = Plugin(
    "aiohttp-client",
    options=[
        Option("query", False, "record the queries of URLs; the values of sensitive parameters are redacted"),
        Option("request_headers", [], "headers of requests to record, by name"),
        Option("response_headers", [], "headers of responses to record, by name"),
        Option("exclude", [], "requests without a span: globs of 'host/path', 'host:port/path' or of URLs"),
    ],
    requires="aiohttp>=3.9,<4",
)


# A hop begins


_sent: ContextVar[tuple[object, int, ref[Hop]] | None] = ContextVar("sw_aiohttp_sent", default=None)


@plugin.intercept("aiohttp.connector:BaseConnector.connect")
async def begin_hop(
    wrapped: Callable[..., Any], _connector: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Start a span before a connection is asked for, and hang it on the connection."""
    hop = _begin(args[0] if args else kwargs["req"])
    if hop is None:
        return await wrapped(*args, **kwargs)
    try:
        connection = await wrapped(*args, **kwargs)
    except BaseException as error:
        hop.finish(error)
        raise
    setattr(connection, HOP, hop)
    hop.peer = connection.transport.get_extra_info("peername")
    return connection


def _begin(request: Any) -> Hop | None:
    session = getattr(request, "_session", None)
    if not isinstance(session, sys.modules["aiohttp.client"].ClientSession) or is_suppressed():
        return None  # what no session sends is no request of the program's, or a test's imitation
    url, around = request.url, capture()
    recording = _recording()
    if recording.excludes(url) or _is_left_to_opentelemetry(session):
        return Hop(None, ContextCarrier.inject(around))
    attributes = {
        **method_attributes(request.method),
        "server.address": url.raw_host,
        "server.port": url.port,
        "url.full": recording.full(url),
        **recording.of_request(request.headers),
    }
    count = _count_of(request)
    if count:
        attributes["http.request.resend_count"] = count
    span = _start_span(request.method, attributes)
    context = around.context or sys.modules["opentelemetry.context"].Context()
    carrier = ContextCarrier.inject(ContextSnapshot(inside(span, context)))
    if not span.is_recording():
        return Hop(None, carrier)
    hop = Hop(span, carrier, count)
    setattr(request, HOP, hop)
    _sent.set((request._timer, count, ref(hop)))
    return hop


def _is_left_to_opentelemetry(session: Any) -> bool:
    """Return whether OpenTelemetry's own instrumentation makes the spans of a session's requests."""
    for config in session._trace_configs:
        if any(getattr(callback, "__module__", "") == OPENTELEMETRYS for callback in config.on_request_start):
            plugin.leaves_spans_to(OPENTELEMETRYS)
            return True
    return False


def _count_of(request: Any) -> int:
    """Return how often the request was sent before. All that one `_request` sends has the same timer."""
    earlier = _hop_of(request)  # a middleware sends it again
    timer, count, last = _sent.get() or (None, -1, None)
    if earlier is None and timer is not request._timer:
        return 0
    if earlier is None and last is not None:
        earlier = last()
    if earlier is None:
        return count + 1
    if earlier.finished:  # else a middleware sends twice at once
        earlier.settle()
    return earlier.count + 1


def _start_span(method: str, attributes: dict[str, Any]) -> Span:
    tracer = plugin.tracer
    client = sys.modules["opentelemetry.trace"].SpanKind.CLIENT  # importing it takes longer
    return tracer.start_span(span_name(method), kind=client, attributes=attributes)


@plugin.intercept("aiohttp.client_reqrep:ClientRequest.send")
async def tell_server(wrapped: Callable[..., Any], request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Put the context among the headers, just before they are written."""
    hop = _hop_of(args[0] if args else kwargs["conn"])
    if hop is None:
        return await wrapped(*args, **kwargs)
    headers = request.headers  # a copy of the program's
    is_anothers = another_wrote_parent(headers) and headers["traceparent"] != vars(request).get(WRITTEN)
    for name, value in hop.carrier.items():
        if is_anothers and name in ("traceparent", "tracestate"):
            continue
        if name == "traceparent":
            setattr(request, WRITTEN, value)  # a middleware may send it again
            headers.popall("tracestate", None)  # the program's belongs to its traceparent
        elif name == "baggage" and len(value) > LONGEST_BAGGAGE:
            value = value[: LONGEST_BAGGAGE + 1].rpartition(",")[0]
        if value:
            headers[name] = value
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        hop.finish(error)
        raise


# A hop ends


@plugin.intercept("aiohttp.client_reqrep:ClientResponse.start")
async def see_response(
    wrapped: Callable[..., Any], response: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Record the headers; the hop belongs to the response from then on."""
    connection = args[0] if args else kwargs["connection"]
    hop = getattr(connection, "__dict__", {}).pop(HOP, None)
    if hop is None:
        return await wrapped(*args, **kwargs)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        hop.finish(error)
        raise
    setattr(response, HOP, hop)
    hop.respond(response, _recording())
    if response.closed:  # the end of the body came with the headers
        _end(response)
    return result


@plugin.intercept("aiohttp.client_reqrep:ClientResponse._response_eof")
def end_with_body(wrapped: Callable[..., Any], response: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """End the hop when the body has arrived in full; after an upgrade it goes on."""
    result = wrapped(*args, **kwargs)
    if response.closed:
        _end(response)
    return result


@plugin.before("aiohttp.client_reqrep:ClientResponse.release")
@plugin.before("aiohttp.client_reqrep:ClientResponse.close")
def end_with_response(response: Any, _args: Any, _kwargs: Any) -> None:
    """End the hop when the program wants no more of the response, or gets none because its time is over."""
    if _hop_of(response) is None:
        return
    error = None
    if getattr(response._timer, "_cancelled", False):
        error = sys.modules["asyncio"].TimeoutError()
    elif response.status == 101 and type(sys.exc_info()[1]).__name__ == "WSServerHandshakeError":
        error = sys.exc_info()[1]
    _end(response, error)


@plugin.before("aiohttp.client_ws:ClientWebSocketResponse.__init__")
def end_with_handshake(_websocket: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """End the hop when the handshake has succeeded."""
    _end(kwargs["response"] if "response" in kwargs else args[3])


@plugin.before("aiohttp.streams:StreamReader.set_exception")
def fail_with_body(stream: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """End the hop of a response whose body will not come, because of a timeout or a broken connection."""
    _end_of_body(stream, args[0] if args else kwargs["exc"])


@plugin.before("aiohttp.client_proto:ResponseHandler.abort", optional=True)
@plugin.before("aiohttp.client_proto:ResponseHandler.close")
def end_with_connection(handler: Any, _args: Any, _kwargs: Any) -> None:
    """End the hop of a response whose connection the program closes, with the session."""
    _end_of_body(handler._payload)


def _end_of_body(stream: Any, error: BaseException | None = None) -> None:
    callbacks = getattr(stream, "_eof_callbacks", None)
    if type(callbacks) is list:
        for callback in callbacks:  # one of them is the response's
            _end(getattr(callback, "__self__", None), error)


def _end(response: object, error: BaseException | None = None) -> None:
    hop = _hop_of(response)
    if hop is None:
        return
    delattr(response, HOP)
    hop.finish(error)
    if not hop.is_redirect:  # what follows a redirect may fail; else it goes with the request
        hop.settle()


def _hop_of(owner: object) -> Hop | None:
    hop: Hop | None = getattr(owner, "__dict__", {}).get(HOP)
    return hop


# A request fails


@plugin.before("aiohttp.helpers:TimeoutHandle.close")
def see_what_the_program_gets(_handle: object, _args: Any, _kwargs: Any) -> None:
    """Give the last hop of a `_request` that fails the exception which it raises, perhaps another than that of the hop.

    Once it has the response that it returns, what fails is the program's.
    """
    frame, error = _frame_of_request(), sys.exc_info()[1]
    if frame is None or error is None:
        return
    request = frame.f_locals.get("req")
    if request is not None:
        hop = _hop_of(request)
        if hop is not None and (hop.is_redirect or not hop.responded):
            hop.finish()
            hop.settle(error)
    elif any(kind.__name__ == "InvalidURL" for kind in type(error).__mro__):
        _record_refusal(frame, None, error)


@plugin.intercept("aiohttp.client:ClientSession._build_url")
def see_invalid_url(wrapped: Callable[..., Any], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record a request that aiohttp refuses to make, before it has begun."""
    errors = sys.modules["aiohttp.client_exceptions"]
    try:
        url = wrapped(*args, **kwargs)
    except ValueError:
        _record_refusal(_frame_of_request(), None, getattr(errors, "InvalidUrlClientError", errors.InvalidURL)(""))
        raise
    schemes = getattr(session._connector, "allowed_protocol_schema_set", None)  # since 3.10
    if schemes is not None and url.scheme not in schemes:
        _record_refusal(_frame_of_request(), url, errors.NonHttpUrlClientError(url))
    return url


def _record_refusal(frame: Any, url: Any, error: BaseException) -> None:
    recording = _recording()
    if frame is None or is_suppressed() or (url is not None and recording.excludes(url)):
        return
    if _is_left_to_opentelemetry(frame.f_locals["self"]):
        return
    method = str(frame.f_locals["method"]).upper()
    attributes = method_attributes(method)
    if url is not None:
        attributes["url.full"] = recording.full(url)
    Hop(_start_span(method, attributes), ContextCarrier()).settle(error)


def _frame_of_request() -> Any:
    frame = sys._getframe(2)
    while frame is not None and (frame.f_code.co_name, frame.f_globals.get("__name__")) != (
        "_request",
        "aiohttp.client",
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return frame


_prepared: Recording | None = None


def _recording() -> Recording:
    global _prepared
    if _prepared is None or _prepared.settings is not plugin.settings:
        _prepared = Recording(plugin.settings)
    return _prepared
