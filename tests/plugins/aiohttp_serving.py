"""A real aiohttp server on the loopback for tests, and a client of bytes, which can send what no client would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from opentelemetry import trace

from sw_agent.testing import RecordedSpans


def span(name: str) -> Any:
    return trace.get_tracer("program").start_as_current_span(name)


def current() -> int:
    """Return the id of the current span, 0 where there is none."""
    return trace.get_current_span().get_span_context().span_id


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, for half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.001)


async def ended(spans: RecordedSpans, count: int = 1) -> list[Any]:
    """Wait until that many spans have ended, and return them."""
    await until(lambda: len(spans) >= count)
    assert len(spans) == count, spans.names
    return list(spans)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Connection:
    """A connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_request(self, target: str, method: str = "GET", host: str = "shop.test", **headers: str) -> None:
        named = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        self.send("\r\n".join((*lines, "", "")).encode("latin-1"))

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self, method: str = "GET") -> Answer:
        status, headers = await self.head()
        if method == "HEAD" or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = await self.reader.read()
        return Answer(status, headers, body)

    async def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        self.send_request(target, method, **headers)
        return await self.answer(method)

    def abort(self) -> None:
        self.writer.transport.abort()


class Serving:
    """A running server."""

    def __init__(self, runner: web.BaseRunner, port: int) -> None:
        self.runner = runner
        self.port = port
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self._connections.append(connection)
        return connection

    async def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        return await (await self.connect()).ask(target, method, **headers)

    def close(self) -> None:
        for connection in self._connections:
            connection.writer.close()


@asynccontextmanager
async def serving(app: web.Application | web.Server, **options: Any) -> AsyncIterator[Serving]:
    """Run an application, or a low-level server, as a program does."""
    make: Any = web.ServerRunner if isinstance(app, web.Server) else web.AppRunner
    runner = make(app, **{"shutdown_timeout": 1.0, **options})
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = Serving(runner, runner.addresses[0][1])
    try:
        yield server
    finally:
        server.close()
        await runner.cleanup()


def application(*routes: Any, **options: Any) -> web.Application:
    """Return an application with these routes: pairs of a path and a handler, or what aiohttp makes."""
    app = web.Application(**options)
    app.add_routes([web.get(*route) if isinstance(route, tuple) else route for route in routes])
    return app


async def hello(_request: web.BaseRequest) -> web.Response:
    return web.Response(text="hello")
