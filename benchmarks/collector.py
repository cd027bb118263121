"""An OTLP receiver in a process of its own, which keeps what comes and counts spans only when it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector:
    """The process that receives, seen from outside; `endpoint` is its base URL."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def counts(self) -> dict[str, int]:
        """Return how many spans of each service have come since the last time, and forget them."""
        with urllib.request.urlopen(self.endpoint) as answer:
            return dict(json.load(answer))


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector for as long as the context lasts."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Collector(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.terminate()


class Handler(BaseHTTPRequestHandler):
    """Takes bodies by POST, says on GET what was in them."""

    protocol_version = "HTTP/1.1"
    bodies: list[bytes] = []  # noqa: RUF012

    def do_POST(self) -> None:
        """Keep the body."""
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"")

    def do_GET(self) -> None:
        """Count the spans by service."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        counts: Counter[str] = Counter()
        while self.bodies:
            for spans in ExportTraceServiceRequest.FromString(self.bodies.pop()).resource_spans:
                names = {each.key: each.value.string_value for each in spans.resource.attributes}
                counts[names.get("service.name", "")] += sum(len(scope.spans) for scope in spans.scope_spans)
        self._answer(json.dumps(counts).encode())

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
