"""A real aiohttp server in the loop of a test, that answers as its path says and keeps the headers it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from aiohttp import web


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine function as a test, in a loop of its own that nothing is left in."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Served:
    """The server, for an `async with`: `url(path)`, the `requests` that came, and `go` for those that wait."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.go = asyncio.Event()
        self.connections: set[Any] = set()

    def url(self, path: str = "/") -> str:
        """Return the URL of a path here."""
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def parents(self) -> list[str]:
        """The ids of the spans that the requests said to be their parents."""
        return [headers["traceparent"].split("-")[2] for _, headers in self.requests]

    async def __aenter__(self) -> Served:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, request.headers.copy()))
        self.connections.add(request.transport)
        kind, _, argument = request.path.strip("/").partition("/")
        answer = getattr(self, f"_{kind or 'plain'}", self._plain)
        return await answer(request, argument)

    async def _plain(self, _request: web.Request, _argument: str) -> web.StreamResponse:
        return web.Response(text="hello", headers={"X-Answer": "42", "Set-Cookie": "id=secret"})

    async def _read(self, request: web.Request, _argument: str) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    async def _status(self, _request: web.Request, argument: str) -> web.StreamResponse:
        return web.Response(status=int(argument), text="as you wish")

    async def _redirect(self, _request: web.Request, argument: str) -> web.StreamResponse:
        rest = int(argument) - 1
        return web.Response(status=302, headers={"Location": f"/redirect/{rest}" if rest else "/"}, text="elsewhere")

    async def _nowhere(self, _request: web.Request, _argument: str) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "http:////"})

    async def _stream(self, request: web.Request, _argument: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begin")
        await self.go.wait()
        await response.write(b"end")
        return response

    async def _hang(self, _request: web.Request, _argument: str) -> web.StreamResponse:
        await self.go.wait()
        return web.Response()

    async def _disconnect(self, request: web.Request, _argument: str) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def _once(self, request: web.Request, _argument: str) -> web.StreamResponse:
        """Answer the first request on a connection, and close it instead of answering the second."""
        if sum(path == request.path for path, _ in self.requests) == 2:
            return await self._disconnect(request, "")
        return web.Response()

    async def _broken(self, request: web.Request, _argument: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"begin")
        await self.go.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _websocket(self, request: web.Request, _argument: str) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_str(message.data)
        return websocket

    async def _denied(self, request: web.Request, _argument: str) -> web.StreamResponse:
        if "Authorization" in request.headers:
            return web.Response()
        challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})
