"""The plugin aiohttp-client: a span lasts to the end of the body, and says how the request failed, if it did."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp_served import Served, in_loop
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_client import plugin


def error_type(span: ReadableSpan) -> object:
    """Return the type of the error that a span says to have ended with, None where it says none."""
    assert not span.events
    kind = (span.attributes or {}).get("error.type")
    assert (span.status.status_code is StatusCode.ERROR) == (kind is not None)
    return kind


def name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something has happened."""
    deadline = asyncio.get_running_loop().time() + 30
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


# The end of the body


@in_loop
async def test_a_span_lasts_to_the_end_of_a_streamed_body():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            for _ in range(2):  # twice on the same connection
                server.go.clear()
                before = len(spans)
                async with session.get(server.url("/stream")) as response:
                    chunks = response.content.iter_chunked(100)
                    assert await anext(chunks) == b"begin"
                    assert len(spans) == before
                    server.go.set()
                    assert [chunk async for chunk in chunks] == [b"end"]
                    assert len(spans) == before + 1
        assert len(server.connections) == 1
    assert [error_type(each) for each in spans] == [None, None]


@pytest.mark.parametrize("read", ["read", "text"])
@in_loop
async def test_a_span_lasts_until_the_body_is_read(read: str):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            response = await session.get(server.url("/stream"))
            reading = asyncio.ensure_future(getattr(response, read)())
            await asyncio.sleep(0)
            assert len(spans) == 0
            server.go.set()
            await reading
            assert spans.names == ["GET"]
    assert error_type(spans.named("GET")) is None


ENDS: dict[str, Callable[[Any], object]] = {
    "release": lambda response: response.release(),
    "close": lambda response: response.close(),
}


@pytest.mark.parametrize("end", ENDS)
@in_loop
async def test_a_span_ends_when_the_response_is_given_up(end: str):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            response = await session.get(server.url("/stream"))
            assert len(spans) == 0
            ENDS[end](response)
            assert spans.names == ["GET"]
            ENDS[end](response)
    assert error_type(spans.named("GET")) is None


@in_loop
async def test_a_span_ends_with_the_block_that_read_nothing():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            async with session.get(server.url("/stream")):
                assert len(spans) == 0
            assert spans.names == ["GET"]
            with pytest.raises(ZeroDivisionError):
                async with session.get(server.url("/stream")):
                    raise ZeroDivisionError
    assert [error_type(each) for each in spans] == [None, None]


@in_loop
async def test_a_span_ends_when_the_session_is_closed():
    async with Served() as server:
        with installed(plugin) as spans:
            async with aiohttp.ClientSession() as session:
                response = await session.get(server.url("/stream"))
                assert len(spans) == 0
            assert spans.names == ["GET"]
        assert not response.closed
        response.close()
    assert error_type(spans.named("GET")) is None


@in_loop
async def test_a_span_of_a_forgotten_response_ends_with_its_body_all_the_same():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            response = await session.get(server.url("/stream"))
            del response
            gc.collect()
            assert len(spans) == 0  # aiohttp keeps it as long as the body is coming
            server.go.set()
            await until(lambda: len(spans) == 1)
    assert error_type(spans.named("GET")) is None


@in_loop
async def test_a_request_without_a_body_in_the_answer_ends_with_the_headers():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await session.head(server.url())
            assert spans.names == ["HEAD"]
            await session.get(server.url("/status/204"))
            assert spans.names == ["HEAD", "GET"]


@in_loop
async def test_a_handshake_of_a_websocket_is_a_span_that_ends_with_it():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            async with session.ws_connect(server.url("/websocket")) as websocket:
                assert spans.names == ["GET"]
                await websocket.send_str("hello")
                assert (await websocket.receive()).data == "hello"
            assert (spans.named("GET").attributes or {})["http.response.status_code"] == 101
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(server.url("/status/403"))
    assert [error_type(each) for each in spans] == [None, "403"]


@in_loop
async def test_a_handshake_that_the_client_refuses_has_failed():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        headers = b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n"
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + headers)
        await reader.read()

    async with Raw(answer) as url, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await session.ws_connect(url)
    assert error_type(spans.named("GET")) == name_of(raised.value)


# Failures


class Raw:
    """A server that speaks as it likes, for an `async with` that gives its URL."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    async def __aenter__(self) -> str:
        self._answers: list[asyncio.Task[Any]] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._answers.append(task)
            try:
                await self._answer(reader, writer)
            finally:
                writer.close()

        self._server = await asyncio.start_server(answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._answers)


async def failing(spans: RecordedSpans, request: Any) -> BaseException:
    """Await a request that fails; its only span, ended by then, says with what."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  each test says which
        await request
    (span,) = spans
    assert error_type(span) == name_of(raised.value)
    return raised.value


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@in_loop
async def test_a_refused_connection_is_an_error():
    async with aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get(f"http://127.0.0.1:{unused_port()}/"))
    assert isinstance(error, aiohttp.ClientConnectorError)
    assert "Cannot connect to host 127.0.0.1" in (spans.named("GET").status.description or "")


@in_loop
async def test_an_unknown_host_is_an_error():
    class Resolver(aiohttp.abc.AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> Any:
            raise OSError(None, "no such host")

        async def close(self) -> None:
            pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver())) as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get("http://nobody.invalid/"))
    assert isinstance(error, aiohttp.ClientConnectorError)
    assert (spans.named("GET").attributes or {})["server.address"] == "nobody.invalid"


@in_loop
async def test_a_failed_handshake_of_tls_is_an_error():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get(server.url().replace("http:", "https:")))
    assert isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientOSError | ssl.SSLError)


@in_loop
async def test_a_server_that_hangs_up_is_an_error():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.post(server.url("/disconnect")))  # a GET is tried once more
    assert isinstance(error, aiohttp.ServerDisconnectedError)


@in_loop
async def test_an_answer_that_is_no_http_is_an_error():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"nonsense\r\n\r\n")

    async with Raw(answer) as url, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get(url + "?token=secret"))
    assert isinstance(error, aiohttp.ClientResponseError)
    assert "secret" not in (spans.named("GET").status.description or "")


@pytest.mark.parametrize("streamed", [False, True])
@in_loop
async def test_a_body_that_breaks_off_is_an_error(streamed: bool):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:

            async def read() -> None:
                async with session.get(server.url("/broken")) as response:
                    assert len(spans) == 0
                    server.go.set()
                    if streamed:
                        async for _ in response.content.iter_any():
                            pass
                    else:
                        await response.read()

            error = await failing(spans, read())
    assert isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientOSError)


# Timeouts and cancellation


@pytest.mark.parametrize("timeout", [{"total": 0.05}, {"sock_read": 0.05}])
@pytest.mark.parametrize("path", ["/hang", "/stream"])
@in_loop
async def test_a_timeout_is_an_error(timeout: dict[str, float], path: str):
    async with Served() as server, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(**timeout)) as session:
        with installed(plugin) as spans:

            async def read() -> None:
                async with session.get(server.url(path)) as response:
                    await response.read()

            error = await failing(spans, read())
    assert isinstance(error, asyncio.TimeoutError)


@in_loop
async def test_a_timeout_while_a_body_is_streamed_is_an_error():
    async with Served() as server, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05)) as session:
        with installed(plugin) as spans:

            async def read() -> None:
                async with session.get(server.url("/stream")) as response:
                    async for _ in response.content.iter_any():
                        pass

            error = await failing(spans, read())
    assert isinstance(error, asyncio.TimeoutError)


@pytest.mark.parametrize("timeout", [{"total": 0.05}, {"connect": 0.05}, {"sock_connect": 0.05}])
@in_loop
async def test_a_timeout_of_the_connection_is_an_error(timeout: dict[str, float]):
    class Never(aiohttp.TCPConnector):
        async def _wrap_create_connection(self, *_: Any, **__: Any) -> Any:
            from aiohttp.helpers import ceil_timeout

            async with ceil_timeout(timeout.get("sock_connect")):
                await asyncio.Event().wait()

    async with aiohttp.ClientSession(connector=Never(), timeout=aiohttp.ClientTimeout(**timeout)) as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get("http://127.0.0.1:9/"))
    assert isinstance(error, asyncio.TimeoutError)


@pytest.mark.parametrize("path", ["/hang", "/stream"])
@pytest.mark.parametrize("total", [None, 300])
@in_loop
async def test_a_cancellation_is_no_error(path: str, total: float | None):
    async with Served() as server, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=total)) as session:
        with installed(plugin) as spans:

            async def read() -> None:
                async with session.get(server.url(path)) as response:
                    await response.read()

            reading = asyncio.ensure_future(read())
            await until(lambda: server.requests)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert error_type(spans.named("GET")) is None


@in_loop
async def test_a_cancellation_while_connecting_is_no_error():
    waiting = asyncio.Event()

    class Never(aiohttp.TCPConnector):
        async def _wrap_create_connection(self, *_: Any, **__: Any) -> Any:
            waiting.set()
            await asyncio.Event().wait()

    async with aiohttp.ClientSession(connector=Never()) as session:
        with installed(plugin) as spans:
            request = asyncio.ensure_future(session._request("GET", "http://127.0.0.1:9/"))
            await waiting.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert error_type(spans.named("GET")) is None


# Redirects and URLs


@in_loop
async def test_too_many_redirects_are_an_error_of_the_last_one():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, pytest.raises(aiohttp.TooManyRedirects):
            await session.get(server.url("/redirect/9"), max_redirects=3)
    assert [error_type(each) for each in spans] == [None, None, "aiohttp.client_exceptions.TooManyRedirects"]
    assert server.parents == [f"{each.context.span_id:016x}" for each in spans if each.context]


@in_loop
async def test_a_redirect_to_nowhere_is_an_error():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await failing(spans, session.get(server.url("/nowhere")))


@pytest.mark.parametrize("url", ["http:///path", "http://me:secret@host:x/", "http://"])
@in_loop
async def test_an_invalid_url_is_an_error_that_tells_no_secret(url: str):
    async with aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            error = await failing(spans, session.get(url))
    assert isinstance(error, aiohttp.InvalidURL)
    span = spans.named("GET")
    assert "secret" not in f"{span.status.description} {dict(span.attributes or {})}"


@pytest.mark.skipif(not hasattr(aiohttp, "NonHttpUrlClientError"), reason="since aiohttp 3.10")
@in_loop
async def test_a_url_of_another_kind_is_an_error():
    async with aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await failing(spans, session.get("ftp://me:secret@host/path?a=1"))
    assert (spans.named("GET").attributes or {})["url.full"] == "ftp://REDACTED:REDACTED@host/path"
