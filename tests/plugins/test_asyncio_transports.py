"""Whose a connection is: not the request's that happened to resume it (R4, R7).

Each server is a real one on 127.0.0.1, with a client on one connection: the first request has a body that makes the
server pause reading, and its handler, inside a span, resumes it; what comes later on the connection is nobody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from opentelemetry import trace

from sw_agent.testing import installed
from sw_agent_plugins.asyncio import plugin
from tls import TLS

BODY = 1 << 19
LOOPS = pytest.mark.parametrize(
    "make_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture(autouse=True)
def installed_plugin() -> Iterator[None]:
    with installed(plugin):
        yield


def span(name: str = "request") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def current() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def run(make_loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, Any]) -> Any:
    loop = make_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(main, 60))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> bytes:
    """Send a request with a body of that size and return the body of its answer, which has a length."""
    writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    return await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))


@contextlib.asynccontextmanager
async def connection(address: Any, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address, **more)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# Servers


@LOOPS
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_request_to_uvicorn_is_not_in_the_context_of_the_one_before(parser: Any, make_loop: Any) -> None:
    seen: list[tuple[str | None, int]] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        before, size, more = current(), 0, True
        with span():
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
        seen.append((before, size))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        listener = listening()
        config = uvicorn.Config(app, http=parser, loop="none", lifespan="off", log_config=None, ws="none")
        server = uvicorn.Server(config)
        with span("startup"):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
        async with connection(listener.getsockname()) as (reader, writer):
            for _ in range(3):
                assert await ask(reader, writer, BODY) == b"ok"
        server.should_exit = True
        await serving

    run(make_loop, main())
    assert seen == [(None, BODY)] * 3


@LOOPS
def test_what_a_connection_of_aiohttps_server_receives_is_nobodys(
    make_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str | None] = set()
    receive = RequestHandler.data_received

    def data_received(self: Any, data: bytes) -> None:
        if data:  # else aiohttp goes on, in the request that resumes, with what had come before
            seen.add(current())
        receive(self, data)

    monkeypatch.setattr(RequestHandler, "data_received", data_received)

    async def handle(request: web.BaseRequest) -> web.Response:
        with span():
            return web.Response(text=str(len(await request.read())))

    async def main() -> None:
        runner = web.ServerRunner(web.Server(handle))
        with span("startup"):
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with connection(runner.addresses[0]) as (reader, writer):
            for size in (BODY, 0, BODY, 0):
                assert await ask(reader, writer, size) == str(size).encode()
        await runner.cleanup()

    run(make_loop, main())
    assert seen == {None}


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # Python 3.10 leaves them so by itself
@LOOPS
def test_what_a_tls_connection_receives_is_nobodys(make_loop: Any, tls: TLS) -> None:
    seen = run(
        make_loop, pausing_and_resuming({"ssl": tls.server}, {"ssl": tls.client, "server_hostname": "localhost"})
    )
    assert seen == {None}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="keeps nothing back while reading is paused")
def test_what_came_over_tls_while_a_request_had_paused_reading_is_nobodys(tls: TLS) -> None:
    seen: list[tuple[bytes, str | None]] = []
    tasks: list[asyncio.Task[None]] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            seen.append((data, current()))
            if data == b"first\n":
                self.transport.pause_reading()
                tasks.append(asyncio.ensure_future(self.handle()))
            self.transport.write(data)

        async def handle(self) -> None:
            with span():
                while not self.transport._ssl_protocol._incoming.pending:
                    await asyncio.sleep(0)
                self.transport.resume_reading()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        async with connection(address, ssl=tls.client, server_hostname="localhost") as (reader, writer):
            for line in (b"first\n", b"second\n", b"third\n"):
                writer.write(line)
                assert await reader.readline() == line
        server.close()
        await asyncio.gather(*tasks)

    run(asyncio.SelectorEventLoop, main())
    assert seen == [(b"first\n", None), (b"second\n", None), (b"third\n", None)]


@LOOPS
def test_what_a_connection_receives_after_set_protocol_is_nobodys(make_loop: Any) -> None:
    assert run(make_loop, pausing_and_resuming({}, {}, switches=True)) == {None}


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # Python 3.10 leaves them so by itself
@LOOPS
def test_what_a_connection_receives_after_start_tls_in_a_request_is_nobodys(make_loop: Any, tls: TLS) -> None:
    seen: set[str | None] = set()
    upgraded: list[asyncio.Task[Any]] = []

    class Plain(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, _data: bytes) -> None:
            upgraded.append(asyncio.ensure_future(self.upgrade()))

        async def upgrade(self) -> None:
            self.transport.write(b"go\n")
            with span():
                secure = Echo(seen)
                loop = asyncio.get_running_loop()
                transport = await loop.start_tls(self.transport, secure, tls.server, server_side=True)
                secure.connection_made(transport)
            secure.transport.write(b"ready\n")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Plain, "127.0.0.1", 0)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, *server.sockets[0].getsockname())
        transport.write(b"upgrade\n")
        assert await reader.readline() == b"go\n"
        secure = await loop.start_tls(transport, protocol, tls.client, server_hostname="localhost")
        assert secure is not None
        assert await reader.readline() == b"ready\n"
        for _ in range(2):
            secure.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        secure.close()
        await upgraded[0]
        server.close()
        await server.wait_closed()

    run(make_loop, main())
    assert seen == {None}


class Echo(asyncio.Protocol):
    """Sends back what it gets, and notes whose context it is told that in."""

    def __init__(self, seen: set[str | None]) -> None:
        self.seen = seen

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen.add(current())
        self.transport.write(data)


async def pausing_and_resuming(for_server: Any, for_client: Any, switches: bool = False) -> set[str | None]:
    """Let the task of each message pause, set another protocol, and resume; return whose contexts messages came in."""
    seen: set[str | None] = set()
    tasks: list[asyncio.Task[None]] = []

    class Server(Echo):
        def data_received(self, data: bytes) -> None:
            self.seen.add(current())
            self.transport.pause_reading()
            tasks.append(asyncio.ensure_future(self.handle(data)))

        async def handle(self, data: bytes) -> None:
            with span():
                await asyncio.sleep(0)
                if switches:
                    other = Server(self.seen)
                    other.connection_made(self.transport)
                    self.transport.set_protocol(other)
                self.transport.resume_reading()
            self.transport.write(data)

    server = await asyncio.get_running_loop().create_server(lambda: Server(seen), "127.0.0.1", 0, **for_server)
    async with connection(server.sockets[0].getsockname(), **for_client) as (reader, writer):
        for number in range(3):
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
    server.close()
    await asyncio.gather(*tasks)
    return seen


@LOOPS
def test_a_full_buffer_that_a_request_leaves_behind_is_written_on_for_nobody(make_loop: Any) -> None:
    seen: set[str | None] = set()
    resumed: list[str | None] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, _data: bytes) -> None:
            seen.add(current())
            with span():
                self.transport.write(bytes(BODY * 16))

        def resume_writing(self) -> None:
            resumed.append(current())

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        async with connection(server.sockets[0].getsockname()) as (reader, writer):
            for _ in range(2):
                writer.write(b"more")
                await reader.readexactly(BODY * 16)
            while not resumed:
                await asyncio.sleep(0)
        server.close()

    run(make_loop, main())
    assert seen == {None}
    assert set(resumed) == {None}


def test_a_pipe_is_read_on_in_the_context_it_was_made_in() -> None:
    seen: list[str | None] = []

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            seen.append(current())
            got.release()

    got = asyncio.Semaphore(0)

    async def main() -> None:
        ours, theirs = os.pipe()
        pipe = os.fdopen(ours, "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(Reader, pipe)
        for name in ("first", "second"):
            transport.pause_reading()
            with span(name):
                transport.resume_reading()
            os.write(theirs, b"x")
            await got.acquire()
        transport.close()
        os.close(theirs)

    run(asyncio.SelectorEventLoop, main())
    assert seen == [None, None]


# Datagrams


class Endpoint(asyncio.DatagramProtocol):
    """Notes what it is told, and in whose context."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []
        self.is_full = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, _data: bytes, _address: Any) -> None:
        self.told.append(("received", current()))

    def error_received(self, _error: Exception) -> None:
        self.told.append(("error", current()))

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self.told.append(("resumed", current()))

    def fill(self) -> int:
        """Send more than the peer's socket takes, in a request; return how many datagrams that were."""
        sent = 0
        with span():
            while not self.is_full:
                self.transport.sendto(bytes(8192))
                sent += 1
        return sent


class Peer:
    """A socket in that folder, to which an endpoint's own socket can be connected, and connected again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.endpoints.bind(str(folder / "endpoint"))
        self.endpoints.setblocking(False)
        self.connect()

    def connect(self) -> None:
        (self.folder / "peer").unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.folder / "peer"))
        self.socket.setblocking(False)
        self.endpoints.connect(str(self.folder / "peer"))

    async def receive(self, count: int) -> None:
        while count:
            with contextlib.suppress(BlockingIOError):
                self.socket.recv(8192)
                count -= 1
            await asyncio.sleep(0)

    def send(self) -> None:
        self.socket.sendto(b"x", str(self.folder / "endpoint"))


async def endpoint_made_in(maker: str | None, peer: Peer) -> Endpoint:
    with span(maker) if maker else contextlib.nullcontext():
        _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Endpoint, sock=peer.endpoints)
    return protocol


@LOOPS
@pytest.mark.parametrize("maker", [None, "maker"])
def test_a_datagram_endpoint_is_its_makers_whoever_has_filled_its_buffer(
    make_loop: Any, maker: str | None, tmp_path: Path
) -> None:
    async def main() -> list[tuple[str, str | None]]:
        peer = Peer(tmp_path)
        endpoint = await endpoint_made_in(maker, peer)
        for told in (2, 4):
            await peer.receive(endpoint.fill())
            while endpoint.is_full:
                await asyncio.sleep(0)
            peer.send()
            while len(endpoint.told) < told:
                await asyncio.sleep(0)
        endpoint.transport.close()
        peer.socket.close()
        return endpoint.told

    assert run(make_loop, main()) == [("resumed", maker), ("received", maker)] * 2


@LOOPS
@pytest.mark.parametrize("maker", [None, "maker"])
def test_the_error_of_a_datagram_that_a_request_has_left_behind_is_the_endpoints(
    make_loop: Any, maker: str | None, tmp_path: Path
) -> None:
    async def main() -> list[set[tuple[str, str | None]]]:
        peer = Peer(tmp_path)
        endpoint = await endpoint_made_in(maker, peer)
        told = []
        for _ in range(2):
            endpoint.fill()
            peer.socket.close()
            while endpoint.is_full:
                await asyncio.sleep(0)
            told.append(set(endpoint.told))
            endpoint.told.clear()
            peer.connect()
        endpoint.transport.close()
        peer.socket.close()
        return told

    assert run(make_loop, main()) == [{("error", maker), ("resumed", maker)}] * 2


# What stays as it is


@LOOPS
def test_a_clients_connection_is_its_makers_whoever_resumes_it(make_loop: Any) -> None:
    """Natively the callbacks of a connection are those of the code that made it."""
    seen: set[str | None] = set()
    done: list[bytes] = []

    class Client(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            seen.add(current())
            done.append(data)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Echo(set()), "127.0.0.1", 0)
        with span("maker"):
            transport, _ = await asyncio.get_running_loop().create_connection(Client, *server.sockets[0].getsockname())
        for _ in range(2):
            done.clear()
            transport.pause_reading()
            with span():
                transport.resume_reading()
            transport.write(b"x")
            while not done:
                await asyncio.sleep(0)
        transport.close()
        server.close()

    run(make_loop, main())
    assert seen == {"maker"}


@LOOPS
def test_a_callback_of_the_programs_own_is_its_registrars(make_loop: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            seen: asyncio.Future[str | None] = loop.create_future()
            theirs.send(b"x")
            with span("registrar"):
                add(ours, lambda seen=seen: seen.done() or seen.set_result(current()))
            assert await seen == "registrar"
            remove(ours)
        ours.close()
        theirs.close()

    run(make_loop, main())


@LOOPS
def test_a_server_may_be_started_inside_a_span_which_stays_current(make_loop: Any) -> None:
    async def main() -> None:
        with span("startup"):
            server = await asyncio.get_running_loop().create_server(lambda: Echo(set()), "127.0.0.1", 0)
            assert current() == "startup"
            server.close()

    run(make_loop, main())
