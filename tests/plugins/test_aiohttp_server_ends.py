"""The plugin aiohttp-server: when the span of a request ends, and how, where the response is not one short piece."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp_serving import Connection, application, current, ended, serving, span, until
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_server import plugin


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    with installed(plugin) as recorded:
        yield recorded


# Streams


def test_a_stream_ends_with_its_last_byte(spans: RecordedSpans) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        with span("between"):
            await may_end.wait()
        await response.write_eof()
        return response

    async def main() -> None:
        nonlocal may_end
        async with serving(application(("/events", handler))) as server:
            connection = await server.connect()
            for already in (0, 2):
                may_end = asyncio.Event()
                connection.send_request("/events")
                await connection.reader.readuntil(b"data: 1\n\n")
                assert len(spans) == already
                may_end.set()
                await connection.reader.readuntil(b"0\r\n\r\n")
                await ended(spans, already + 2)

    may_end: Any = None
    asyncio.run(main())
    for found in spans:
        if found.name == "GET /events":
            assert found.attributes["http.response.status_code"] == 200  # type: ignore[index]
            assert found.status.status_code is StatusCode.UNSET
    assert spans.names == ["between", "GET /events"] * 2


def test_a_body_that_the_client_is_slow_to_read_is_part_of_the_span(spans: RecordedSpans) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(512):
            await response.write(b"x" * 65536)
        return response

    async def main() -> None:
        async with serving(application(("/large", handler))) as server:
            connection = await server.connect()
            connection.send_request("/large")
            await connection.head()
            assert len(spans) == 0
            answer = 0
            while size := int(await connection.reader.readline(), 16):
                answer += len(await connection.reader.readexactly(size + 2)) - 2
            assert answer == 512 * 65536
            await ended(spans)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["file", "chunked", "compressed", "bytes"])
def test_every_kind_of_body_has_one_span_and_arrives(spans: RecordedSpans, tmp_path: Path, kind: str) -> None:
    body = os.urandom(1 << 20)
    file = tmp_path / "large"
    file.write_bytes(body)

    async def handler(_request: web.Request) -> web.StreamResponse:
        if kind == "file":
            return web.FileResponse(file)
        response = web.Response(body=body)
        if kind == "chunked":
            response.enable_chunked_encoding()
        if kind == "compressed":
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def main() -> None:
        async with serving(application(("/body", handler))) as server:
            connection = await server.connect()
            for _ in range(2):
                received = (await connection.ask("/body")).body
                assert (gzip.decompress(received) if kind == "compressed" else received) == body
            await ended(spans, 2)

    asyncio.run(main())
    assert spans.names == ["GET /body", "GET /body"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_response_without_body_ends_with_its_headers(spans: RecordedSpans, method: str, status: int) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async def main() -> Any:
        async with serving(application(("/", handler))) as server:
            await server.ask("/", method)
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert (found.name, found.attributes["http.response.status_code"]) == (f"{method} /", status)


def test_an_exception_in_a_stream_is_an_error_with_the_status_that_was_sent(
    spans: RecordedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await web.StreamResponse().prepare(request)
        raise ValueError("in the middle")

    async def main() -> Any:
        async with serving(application(("/", handler))) as server:
            connection = await server.connect()
            connection.send_request("/")
            assert (await connection.head())[0] == 200
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert found.attributes["http.response.status_code"] == 200
    assert found.attributes["error.type"] == "ValueError"
    assert found.status.status_code is StatusCode.ERROR
    assert [event.name for event in found.events] == ["exception"]


# Disconnects


def assert_no_error(found: Any) -> None:
    assert found.status.status_code is StatusCode.UNSET
    assert "error.type" not in found.attributes
    assert not found.events


def test_a_request_whose_client_leaves_ends_there_though_its_handler_goes_on(spans: RecordedSpans) -> None:
    async def handler(_request: web.Request) -> web.Response:
        is_there.set()
        await may_go_on.wait()
        with span("afterwards"):
            return web.Response()

    async def main() -> Any:
        nonlocal is_there, may_go_on
        is_there, may_go_on = asyncio.Event(), asyncio.Event()
        async with serving(application(("/", handler))) as server:
            connection = await server.connect()
            connection.send_request("/")
            await is_there.wait()
            connection.abort()
            (found,) = await ended(spans)
            may_go_on.set()
            await ended(spans, 2)
            return found

    is_there: Any = None
    may_go_on: Any = None
    found = asyncio.run(main())
    assert found.name == "GET /"
    assert_no_error(found)
    assert "http.response.status_code" not in found.attributes
    assert spans.named("afterwards").parent.span_id == found.context.span_id  # type: ignore[union-attr]


def test_a_handler_that_is_cancelled_by_the_disconnect_is_no_error(spans: RecordedSpans) -> None:
    async def handler(_request: web.Request) -> web.Response:
        is_there.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()
        return web.Response()

    async def main() -> Any:
        nonlocal is_there, was_cancelled
        is_there, was_cancelled = asyncio.Event(), asyncio.Event()
        async with serving(application(("/", handler)), handler_cancellation=True) as server:
            connection = await server.connect()
            connection.send_request("/")
            await is_there.wait()
            connection.abort()
            await was_cancelled.wait()
            return await ended(spans)

    is_there: Any = None
    was_cancelled: Any = None
    (found,) = asyncio.run(main())
    assert_no_error(found)


def test_a_client_that_leaves_during_a_stream_is_no_error(
    spans: RecordedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 1024)
                await asyncio.sleep(0)
        finally:
            has_ended.set()

    async def main() -> Any:
        nonlocal has_ended
        has_ended = asyncio.Event()
        async with serving(application(("/", handler))) as server:
            connection = await server.connect()
            connection.send_request("/")
            await connection.head()
            connection.abort()
            await has_ended.wait()
            return await ended(spans)

    has_ended: Any = None
    (found,) = asyncio.run(main())
    assert_no_error(found)
    assert found.attributes["http.response.status_code"] == 200


def test_writing_to_a_connection_that_is_closing_is_no_error(
    spans: RecordedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()
        await response.write(b"x" * 65536)
        return response

    async def main() -> Any:
        async with serving(application(("/", handler))) as server:
            (await server.connect()).send_request("/")
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert_no_error(found)


@pytest.mark.parametrize("error", [ConnectionRefusedError, ConnectionResetError])
def test_a_connection_of_the_handlers_own_that_fails_is_an_error(
    spans: RecordedSpans, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        raise error("the database")

    async def main() -> Any:
        async with serving(application(("/", handler))) as server:
            assert (await server.ask("/")).status == 500
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert found.attributes["error.type"] == error.__name__
    assert found.status.status_code is StatusCode.ERROR


def test_a_shutdown_cancels_a_handler_and_that_is_no_error(spans: RecordedSpans) -> None:
    async def handler(_request: web.Request) -> web.Response:
        is_there.set()
        await asyncio.Event().wait()
        return web.Response()

    async def main() -> Any:
        nonlocal is_there
        is_there = asyncio.Event()
        async with serving(application(("/", handler)), shutdown_timeout=0.05) as server:
            connection = await server.connect()
            connection.send_request("/")
            await is_there.wait()
        return await ended(spans)

    is_there: Any = None
    (found,) = asyncio.run(main())
    assert_no_error(found)


def test_nothing_is_kept_of_a_request_that_is_over(spans: RecordedSpans) -> None:
    requests: list[weakref.ref[web.Request]] = []
    last: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(weakref.ref(request))
        last[:] = [request]
        assert not [name for name in request if "sw" in str(name)]
        return web.Response()

    async def main() -> None:
        async with serving(application(("/", handler))) as server:
            connection = await server.connect()
            for _ in range(3):
                await connection.ask("/")
            await ended(spans, 3)
            gc.collect()
            assert [request() for request in requests[:2]] == [None, None]
            assert not [name for name in vars(last[0]) if "_sw" in name]

    asyncio.run(main())


# WebSockets


class Socket:
    """A WebSocket, from its handshake."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open(self, target: str = "/ws") -> int:
        key = base64.b64encode(os.urandom(16)).decode()
        self._connection.send_request(
            target, Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13", Sec_WebSocket_Key=key
        )
        return (await self._connection.head())[0]

    def send(self, text: bytes, opcode: int = 1) -> None:
        self._connection.send(bytes([0x80 | opcode, 0x80 | len(text), 0, 0, 0, 0]) + text)

    async def receive(self) -> bytes:
        size = (await self._connection.reader.readexactly(2))[1]
        return await self._connection.reader.readexactly(size)


async def answers_with_its_span(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.data == "raise":
            raise ValueError("in the socket")
        with span(f"work on {message.data}"):
            await socket.send_str(f"{current():x}")
    return socket


def talk(spans: RecordedSpans, app: web.Application, *texts: bytes) -> int:
    """Open a WebSocket, send each text and wait for its answer; return how many spans had ended with the handshake."""

    async def main() -> int:
        async with serving(app) as server:
            socket = Socket(await server.connect())
            assert await socket.open() == 101
            (handshake,) = await ended(spans)
            assert handshake.name == "GET /ws"
            for text in texts:
                socket.send(text)
                if text != b"raise":
                    await socket.receive()
            socket.send(b"", 8)
            await until(lambda: not server.runner.server.connections)
            return 1

    return asyncio.run(main())


def test_the_span_of_a_websocket_ends_with_the_handshake_and_what_follows_hangs_under_it(spans: RecordedSpans) -> None:
    talk(spans, application(("/ws", answers_with_its_span)), b"one", b"two")
    assert spans.names == ["GET /ws", "work on one", "work on two"]
    handshake, *work = spans
    assert handshake.attributes["http.response.status_code"] == 101  # type: ignore[index]
    assert handshake.attributes["http.route"] == "/ws"  # type: ignore[index]
    assert {found.parent.span_id for found in work} == {handshake.context.span_id}  # type: ignore[union-attr]


def test_an_exception_in_a_websocket_does_not_touch_the_span_that_has_ended(
    spans: RecordedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    talk(spans, application(("/ws", answers_with_its_span)), b"raise")
    (handshake,) = spans
    assert handshake.status.status_code is StatusCode.UNSET
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_each_message_has_a_trace_of_its_own_where_the_option_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    with installed(plugin, websocket_messages=True) as spans:
        talk(spans, application(("/ws", answers_with_its_span)), b"one", b"two", b"raise")
    handshake, *others = spans
    messages = [found for found in others if found.name == "WEBSOCKET /ws"]
    assert len(messages) == 3
    assert len({found.context.trace_id for found in (handshake, *messages)}) == 4  # type: ignore[union-attr]
    for message in messages:
        assert message.parent is None
        assert [link.context.span_id for link in message.links] == [handshake.context.span_id]  # type: ignore[union-attr]
    for text, message in zip(("one", "two"), messages, strict=False):
        assert spans.named(f"work on {text}").parent.span_id == message.context.span_id  # type: ignore[union-attr]
        assert message.status.status_code is StatusCode.UNSET
    assert messages[2].status.status_code is StatusCode.ERROR
    assert messages[2].attributes["error.type"] == "ValueError"  # type: ignore[index]


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
def test_a_processor_of_the_programs_that_fails_takes_no_message(
    moment: str, agent_errors: list[logging.LogRecord]
) -> None:
    class Failing(SpanProcessor):
        pass

    def fail(_processor: Failing, span: Any, **_: object) -> None:
        if active and span.name.startswith("WEBSOCKET"):
            raise RuntimeError("of the processor")

    active = True
    setattr(Failing, moment, fail)
    with installed(plugin, websocket_messages=True) as spans:
        trace.get_tracer_provider().add_span_processor(Failing())  # type: ignore[attr-defined]
        try:
            talk(spans, application(("/ws", answers_with_its_span)), b"one", b"two")
        finally:
            active = False
    assert {"work on one", "work on two"} < set(spans.names)
    (record,) = agent_errors
    agent_errors.clear()
    assert "of a WebSocket failed" in record.getMessage()


def test_a_ping_is_no_message() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert (await socket.receive()).data == "one"
        await socket.send_str("go on")
        assert (await socket.receive()).type is WSMsgType.TEXT
        await socket.send_str("done")
        return socket

    async def main() -> None:
        async with serving(application(("/ws", handler))) as server:
            socket = Socket(await server.connect())
            assert await socket.open() == 101
            socket.send(b"one")
            assert await socket.receive() == b"go on"
            socket.send(b"ping", 9)
            assert await socket.receive() == b"ping"
            socket.send(b"two")
            assert await socket.receive() == b"done"
            socket.send(b"", 8)
            await ended(spans, 3)

    with installed(plugin, websocket_messages=True) as spans:
        asyncio.run(main())
    assert spans.names == ["GET /ws", "WEBSOCKET /ws", "WEBSOCKET /ws"]


def test_a_handshake_that_is_refused_is_a_response(spans: RecordedSpans) -> None:
    async def main() -> Any:
        async with serving(application(("/ws", answers_with_its_span))) as server:
            assert (await server.ask("/ws")).status == 400
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert found.attributes["http.response.status_code"] == 400
    assert_no_error(found)


def test_a_clone_of_the_request_may_open_the_websocket(spans: RecordedSpans) -> None:
    @web.middleware
    async def clones(request: web.Request, handler: Any) -> Any:
        return await handler(request.clone())

    talk(spans, application(("/ws", answers_with_its_span), middlewares=[clones]), b"one")
    assert spans.names == ["GET /ws", "work on one"]


def test_an_excluded_websocket_has_no_messages_either() -> None:
    async def main() -> None:
        async with serving(application(("/ws", answers_with_its_span))) as server:
            socket = Socket(await server.connect())
            assert await socket.open() == 101
            socket.send(b"one")
            await socket.receive()
            socket.send(b"", 8)
            await until(lambda: not server.runner.server.connections)

    with installed(plugin, exclude=["/w*"], websocket_messages=True) as spans:
        asyncio.run(main())
    assert spans.names == ["work on one"]
