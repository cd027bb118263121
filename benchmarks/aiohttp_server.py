"""What an agent costs an aiohttp server: throughput with every span exported, processor time, latency.

The client is a loop over raw kept connections in this process, so that the server is what limits. A measurement ends
when the server has sent all its spans. The servers of all ways run at the same time and are asked in turn.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from collector import Collector
from measuring import DROPPED, PEER, Row, Way, fill
from spans import lost

REQUESTS, CONNECTIONS, FLUSHES = 4_000, 16, 2  # in a measurement
RATE, SECONDS = 500, 4  # of the requests whose latency counts
HEADERS = "Host: shop.test:8080\r\nUser-Agent: benchmark/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
PARENT = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
STORED = {"OTEL_TRACES_EXPORTER": "", "SW_EXPORT_TO": "local"}


class Server:
    """A server's process, and the connections to it."""

    def __init__(self, way: Way, path: str, variables: dict[str, str]) -> None:
        self._process = way.start("server.py", OTEL_SERVICE_NAME=way.name, **variables)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self._connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
        self._request = f"GET {path} HTTP/1.1\r\n{HEADERS}{PARENT}\r\n".encode()
        self.throughput(REQUESTS // 10)  # warms up

    def throughput(self, count: int = REQUESTS) -> tuple[float, float]:
        """Return the requests per second, and the seconds of CPU of each, with as many under way as connections."""
        cpu, start = self._flushed(), time.perf_counter()
        for connection in self._connections:
            connection.sendall(self._request)
        for number in range(count):
            connection = self._connections[number % CONNECTIONS]
            _answer(connection)
            if number < count - CONNECTIONS:
                connection.sendall(self._request)
        cpu = self._flushed() - cpu
        return count / (time.perf_counter() - start), cpu / count

    def cpu(self) -> tuple[float]:
        """Return the seconds of CPU of a request."""
        return (self.throughput()[1],)

    def latency(self) -> tuple[float, float]:
        """Return the median and the 99th percentile of the seconds from when a request was due to its answer."""
        found, start = [], time.perf_counter()
        for number in range(RATE * SECONDS):
            due = start + number / RATE
            time.sleep(max(0, due - time.perf_counter()))
            self._connections[0].sendall(self._request)
            _answer(self._connections[0])
            found.append(time.perf_counter() - due)
        self._flushed()
        return statistics.median(found), statistics.quantiles(found, n=100)[98]

    def close(self) -> None:
        """End the server as a program ends."""
        for connection in self._connections:
            connection.close()
        self._process.communicate(timeout=60)

    def _flushed(self) -> float:
        """Let the server send its spans, and return the seconds of CPU that it has used."""
        self._connections[0].sendall(b"GET /flushed HTTP/1.1\r\nHost: a\r\n\r\n")
        return float(_answer(self._connections[0]).rpartition(b"\r\n")[2])


def measure(ways: Sequence[Way], rounds: int, collector: Collector) -> Iterator[Row]:
    """Measure a trivial handler, one that hands work over, and the trivial one where spans go elsewhere."""
    for what, path, budget in (("trivial handler", "/users/7", 0.5), ("a task and run_in_executor", "/hops/7", 0.6)):
        rows = [
            Row(f"aiohttp server, {what}", "/s", budget=budget, more_is_better=True),
            Row("… CPU of a request", "µs"),
        ]
        collector.counts()
        _measure(rows, ways, rounds, path)
        rows[0].note = lost(collector, ways, rounds * (REQUESTS + FLUSHES) + REQUESTS // 10 + FLUSHES)
        yield from rows
    latency = [Row(f"aiohttp server, {RATE} requests/s, {share}", "ms") for share in ("p50", "p99")]
    yield from _measure(latency, ways, rounds, "/users/7", ask=Server.latency)
    dropped = Row("aiohttp server, spans dropped, CPU of a request", "µs", budget=60, compared="added")
    yield from _measure([dropped], ways, rounds, "/users/7", DROPPED, Server.cpu)
    stored = Row("aiohttp server, spans into the local store, CPU of a request", "µs")
    own = [way for way in ways if way.name != PEER]
    yield from _measure([stored], own, rounds, "/users/7", STORED, Server.cpu)


def _measure(
    rows: Sequence[Row],
    ways: Sequence[Way],
    rounds: int,
    path: str,
    variables: dict[str, str] | None = None,
    ask: Callable[[Server], tuple[float, ...]] = Server.throughput,
) -> Sequence[Row]:
    with ExitStack() as stack:
        servers = {way.name: Server(way, path, variables or {}) for way in ways}
        for server in servers.values():
            stack.callback(server.close)
        return fill(rows, ways, rounds, lambda way: ask(servers[way.name]))


def _answer(connection: socket.socket) -> bytes:
    """Return an answer, which comes in one piece."""
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer
