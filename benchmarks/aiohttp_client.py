"""What a request of aiohttp's client costs, plain and under the plugin: alternating in one process and one loop.

`python benchmarks/aiohttp_client.py [rounds]` prints microseconds for each request on a kept-alive connection, to a
server in another process that answers without looking. The spans go to a processor that drops them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from typing import Any

import aiohttp
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from sw_agent_plugins.aiohttp_client import plugin

REQUESTS = 500  # in each round


class Answer(asyncio.Protocol):
    """Answers each request in one write."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        """Answer."""
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def serve(port: Any) -> None:
    """Serve for ever, on a port that is sent to the parent."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def seconds(session: aiohttp.ClientSession, url: str) -> float:
    """Return the processor time of one request, on average; the server's is not in it."""
    start = time.process_time()
    for _ in range(REQUESTS):
        async with session.get(url) as response:
            await response.read()
    return (time.process_time() - start) / REQUESTS


async def measure(url: str, rounds: int) -> None:
    """Measure plain, traced, and traced without a span being recorded, in turn."""
    times: dict[str, list[float]] = {"plain": [], "traced": [], "excluded": []}
    async with aiohttp.ClientSession() as session:
        for number in range(rounds + 1):
            for way, results in times.items():
                if way != "plain":
                    plugin.install({"exclude": ["127.0.0.1/*"]} if way == "excluded" else {})
                taken = await seconds(session, url)
                plugin.uninstall()
                if number:  # the first round warms up
                    results.append(taken)
    plain = statistics.median(times["plain"])
    for way, results in times.items():
        median = statistics.median(results)
        print(f"{way:10}{median * 1e6:8.1f} µs{(median - plain) * 1e6:+8.1f} µs{median / plain:7.2f}")


if __name__ == "__main__":
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        asyncio.run(measure(f"http://127.0.0.1:{here.recv()}/", int(sys.argv[1]) if len(sys.argv) > 1 else 20))
    finally:
        server.terminate()
