"""The plugin aiohttp-client: the program, its objects, its errors and its warnings are as without the agent."""

from __future__ import annotations

import asyncio
import gc
import inspect
import socket
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp_served import Served, in_loop
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from launched import Launch
from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_client import plugin


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    with installed(plugin) as spans:
        yield spans


# Errors and warnings


FAILURES: dict[str, Callable[[Served, aiohttp.ClientSession], Any]] = {
    "connect": lambda server, session: session.get("http://127.0.0.1:1/"),
    "disconnect": lambda server, session: session.get(server.url("/disconnect")),
    "timeout": lambda server, session: session.get(server.url("/hang"), timeout=aiohttp.ClientTimeout(total=0.5)),
    "invalid URL": lambda server, session: session.get("http:///"),
    "bad URL": lambda server, session: session.get("http://host:port/"),
    "redirects": lambda server, session: session.get(server.url("/redirect/9"), max_redirects=2),
    "status": lambda server, session: session.get(server.url("/status/404"), raise_for_status=True),
    "misuse": lambda server, session: session.get(server.url(), data=b"", json={}),
    "bad header": lambda server, session: session.get(server.url(), headers={"X": "a\r\nb"}),
}


async def frames_of(failure: str) -> tuple[type[BaseException], str, list[str]]:
    """Return what a request raises, and the functions in the traceback, with those of the causes."""
    async with Served() as server, aiohttp.ClientSession() as session:
        try:
            await FAILURES[failure](server, session)
        except Exception as error:
            chain: list[str] = []
            cause: BaseException | None = error
            while cause is not None:
                chain += [f"{frame.filename}:{frame.name}" for frame in traceback.extract_tb(cause.__traceback__)]
                cause = cause.__cause__ or cause.__context__
            return type(error), str(error).replace(str(server.port), "PORT"), chain
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("failure", FAILURES)
@in_loop
async def test_an_exception_is_the_same_and_shows_no_frame_of_the_agent(failure: str):
    plain = await frames_of(failure)
    with installed(plugin):
        traced = await frames_of(failure)
    assert traced[:2] == plain[:2]
    if sys.version_info >= (3, 11):
        assert traced[2] == plain[2]


@in_loop
async def test_a_warning_names_the_line_of_the_program(spans: RecordedSpans):
    async with Served() as server, aiohttp.ClientSession() as session:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with session.get(server.url(), verify_ssl=False):
                pass
    assert caught
    names = {Path(each.filename).parts[-2:] for each in caught if each.category is DeprecationWarning}
    assert not any("sw_agent" in part for name in names for part in name)


PROGRAM = """
import asyncio, gc, warnings
import aiohttp
from aiohttp import web

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # the SDK is imported with the first span

    async def answer(request):
        return web.Response(text=request.headers.get("traceparent", "none"))
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{host}:{port}/") as response:
            print((await response.text()).split("-")[2])
    if LEAK:
        aiohttp.ClientSession()
        gc.collect()
    await runner.cleanup()

asyncio.run(main())
"""


def test_a_whole_program_is_traced_and_has_nothing_to_complain_of_in_dev_mode(launch: Launch):
    program = launch("LEAK = False" + PROGRAM, prelude="", PYTHONDEVMODE="1")
    parent = program.end().strip()
    assert [span.name for span in program.spans() if span.span_id == parent] == ["GET"]


def test_a_session_that_is_never_closed_is_still_complained_of(launch: Launch):
    program = launch("LEAK = True" + PROGRAM, prelude="", PYTHONDEVMODE="1")
    _, err = program.end_with_stderr()
    assert "ResourceWarning: Unclosed client session" in err
    assert "sw_agent" not in err


# The program's own classes and ways


@in_loop
async def test_what_the_program_derives_from_aiohttp_works_and_is_traced(spans: RecordedSpans):
    class Request(aiohttp.ClientRequest):
        pass

    class Response(aiohttp.ClientResponse):
        def release(self) -> Any:
            return super().release()

    class Connector(aiohttp.TCPConnector):
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            return await super().connect(*args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)

        class Session(aiohttp.ClientSession):
            async def _request(self, *args: Any, **kwargs: Any) -> Any:
                return await super()._request(*args, **kwargs)

    own: Any = {"request_class": Request, "response_class": Response, "connector": Connector()}
    async with Served() as server, Session(**own) as session, session.get(server.url("/redirect/1")) as response:
        assert type(response) is Response
        with pytest.raises(aiohttp.InvalidURL):
            await session.get("http:///")
    assert spans.names == ["GET"] * 3
    assert server.parents == [f"{span.context.span_id:016x}" for span in list(spans)[:2] if span.context]


@in_loop
async def test_every_way_to_make_a_request_is_traced(spans: RecordedSpans):
    async with Served() as server:
        async with aiohttp.request("GET", server.url()) as response:
            assert response.status == 200
        async with aiohttp.ClientSession(base_url=server.url()) as session:
            for method in ("get", "post", "put", "patch", "delete", "head", "options"):
                async with getattr(session, method)("/x"):
                    pass
            async with session.request("GET", "/x"):
                pass
            assert (await session.post("/read", data=b"x" * 100_000)).status == 200
    assert spans.names == ["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "GET", "POST"]


@in_loop
async def test_a_proxy_sees_the_context_and_the_span_names_the_server_behind_it(spans: RecordedSpans):
    async with Served() as proxy, aiohttp.ClientSession() as session:
        response = await session.get("http://behind.invalid/x", proxy=proxy.url())
        assert response.status == 200
    attributes = spans.named("GET").attributes or {}
    assert (attributes["server.address"], attributes["server.port"]) == ("behind.invalid", 80)
    assert (attributes["network.peer.address"], attributes["network.peer.port"]) == ("127.0.0.1", proxy.port)
    assert len(proxy.parents) == 1


@in_loop
async def test_a_tunnel_that_a_proxy_denies_fails_the_one_request_that_wanted_it(spans: RecordedSpans):
    async with Served() as proxy, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("https://behind.invalid/x", proxy=proxy.url("/"))
    assert spans.names == ["GET"]
    assert all("traceparent" not in headers for _, headers in proxy.requests)


@in_loop
async def test_what_is_patched_looks_as_before():
    functions = (
        aiohttp.TCPConnector.connect,
        aiohttp.ClientResponse.start,
        aiohttp.ClientResponse.release,
        aiohttp.ClientResponse.close,
        aiohttp.ClientSession._build_url,
    )
    looks = [lambda f: f.__qualname__, inspect.signature, inspect.iscoroutinefunction, lambda f: f.__doc__]
    before = [[look(function) for look in looks] for function in functions]
    request = aiohttp.ClientSession._request
    with installed(plugin):
        patched = (
            aiohttp.TCPConnector.connect,
            aiohttp.ClientResponse.start,
            aiohttp.ClientResponse.release,
            aiohttp.ClientResponse.close,
            aiohttp.ClientSession._build_url,
        )
        assert [[look(function) for look in looks] for function in patched] == before
        assert aiohttp.ClientSession._request is request
    assert aiohttp.ClientResponse.start is functions[1]


# Bad input


@in_loop
async def test_headers_that_are_no_utf_8_and_hosts_with_accents_are_recorded():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nX-Odd: \xff\xe9\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    class Here(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> Any:
            return [
                {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0},
            ]

        async def close(self) -> None:
            pass

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with installed(plugin, response_headers=["X-Odd"]) as spans:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Here())) as session:
            response = await session.get(f"http://b\u00fccher.example:{port}/\u00fc")
            assert response.headers["X-Odd"] == "\udcff\udce9"
    server.close()
    attributes = spans.named("GET").attributes or {}
    assert attributes["server.address"] == "xn--bcher-kva.example"
    assert attributes["url.full"] == f"http://xn--bcher-kva.example:{port}/%C3%BC"
    assert attributes["network.protocol.version"] == "1.0"
    for value in attributes.values():
        str(value).encode()
    assert "http.response.header.x-odd" in attributes


# Memory


class References(SpanProcessor):
    """Weak references to all spans that begin, while `spans` is a list."""

    def __init__(self) -> None:
        self.spans: list[weakref.ref[Any]] | None = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.spans is not None:
            self.spans.append(weakref.ref(span))


@pytest.fixture
def references() -> Iterator[list[weakref.ref[Any]]]:
    with installed(plugin):
        provider = trace.get_tracer_provider()
        assert isinstance(provider, TracerProvider)
        references = References()
        provider.add_span_processor(references)
        assert references.spans is not None
        yield references.spans
        references.spans = None


@pytest.mark.parametrize("path", ["/", "/redirect/2", "/status/500", "/hang", "/broken"])
@in_loop
async def test_nothing_is_kept_of_a_session_that_is_closed(references: list[weakref.ref[Any]], path: str):
    class Request(aiohttp.ClientRequest):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            references.append(weakref.ref(self))

    async def use(server: Served) -> None:
        timeout = aiohttp.ClientTimeout(total=0.05 if path == "/hang" else None)
        async with aiohttp.ClientSession(request_class=Request, timeout=timeout) as session:
            references.append(weakref.ref(session))
            for _ in range(2):
                try:
                    async with session.get(server.url(path)) as response:
                        references.append(weakref.ref(response))
                        server.go.set()
                        await response.read()
                except (aiohttp.ClientError, asyncio.TimeoutError):
                    pass

    async with Served() as server:
        await asyncio.create_task(use(server))
        await asyncio.sleep(0)
        gc.collect()
        assert len(references) >= 4
        alive = [reference() for reference in references if reference() is not None]
    assert alive == []


class Answer(asyncio.Protocol):
    """The quickest HTTP server: for many requests on one connection."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@in_loop
async def test_ten_thousand_requests_leave_nothing_behind(spans: RecordedSpans):
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    async def make(session: aiohttp.ClientSession, count: int) -> int:
        for _ in range(count):
            async with session.get(url) as response:
                await response.read()
        spans.ended.clear()
        gc.collect()
        return len(gc.get_objects())

    async with aiohttp.ClientSession() as session:
        before = await make(session, 100)
        after = await make(session, 10_000)
    server.close()
    assert after - before < 5_000  # one object kept of each request would be 10,000
