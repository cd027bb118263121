"""aiohttp's client and server on encrypted connections and on Unix sockets: one trace, and what is known of each."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp_serving import application, ended, hello
from opentelemetry.trace import SpanKind

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_client import plugin as client_plugin
from sw_agent_plugins.aiohttp_server import plugin as server_plugin
from tls import TLS


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    with ExitStack() as stack:
        stack.enter_context(installed(client_plugin))
        yield stack.enter_context(installed(server_plugin))


def exchanged(
    spans: RecordedSpans, listen: Any, connector: Any, url: str, context: ssl.SSLContext | None = None
) -> tuple[Any, Any]:
    """Return the spans of the client and of the server for the second of two requests on one connection."""

    async def main() -> list[Any]:
        runner = web.AppRunner(application(("/users/{id}", hello)))
        await runner.setup()
        await listen(runner).start()
        async with aiohttp.ClientSession(connector=connector()) as session:
            for _ in range(2):
                target = url.format(port=runner.addresses[0][1])
                async with session.get(target, **({"ssl": context} if context else {})) as response:
                    assert await response.text() == "hello"
        found = await ended(spans, 4)
        await runner.cleanup()
        return found

    found = asyncio.run(main())
    clients = {span.context.span_id: span for span in found if span.kind is SpanKind.CLIENT}
    servers = [span for span in found if span.kind is SpanKind.SERVER]
    pairs = [(clients.pop(server.parent.span_id), server) for server in servers]
    for client, server in pairs:
        assert server.context.trace_id == client.context.trace_id
    return pairs[1]


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # Python 3.10 leaves them so by itself
def test_an_encrypted_exchange_is_one_trace_of_https(spans: RecordedSpans, tls: TLS) -> None:
    client, server = exchanged(
        spans,
        lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server),
        aiohttp.TCPConnector,
        "https://localhost:{port}/users/7",
        tls.client,
    )
    assert client.attributes["url.full"].startswith("https://localhost:")
    assert server.name == "GET /users/{id}"
    assert server.attributes["url.scheme"] == "https"
    assert server.attributes["server.address"] == "localhost"
    assert server.attributes["server.port"] == client.attributes["server.port"]
    assert server.attributes["client.address"] == client.attributes["network.peer.address"] == "127.0.0.1"


def test_an_exchange_over_a_unix_socket_is_one_trace_that_names_no_address(
    spans: RecordedSpans, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    client, server = exchanged(
        spans,
        lambda runner: web.UnixSite(runner, path),
        lambda: aiohttp.UnixConnector(path),
        "http://inside/users/7",
    )
    assert client.attributes["server.address"] == server.attributes["server.address"] == "inside"
    assert server.attributes["url.scheme"] == "http"
    for span in (client, server):
        assert not any(key.startswith(("network.peer.", "client.")) for key in span.attributes)
