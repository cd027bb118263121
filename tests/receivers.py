"""Collectors for tests: real OTLP receivers on the loopback, which can be told to fail."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Received:
    """What came in, and how the next requests are answered."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.requests: list[ExportTraceServiceRequest] = []
        self.encodings: list[str | None] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""  # of the answer
        self.after: list[int] = []  # the statuses of the next answers; then it is `status` again
        self.raw: bytes | None = None  # is sent in the place of an answer, and the connection closed
        self.code: grpc.StatusCode | None = None  # of a failure of the grpc service
        self.trailers: tuple[tuple[str, bytes], ...] = ()
        self.asked = 0
        self.hangs_after: int | None = None  # requests, after which no answer comes before the test's end
        self.answer = threading.Event()
        self.answer.set()
        self.prompt = 0  # so many requests are answered at once, also where `answer` is not set
        self.came = threading.Event()
        self.over = threading.Event()

    def take(self, request: ExportTraceServiceRequest) -> None:
        self.requests.append(request)
        self.came.set()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)

    def resources(self) -> list[dict[str, object]]:
        return [
            {
                attribute.key: attribute.value.string_value or attribute.value.int_value
                for attribute in found.resource.attributes
            }
            for request in self.requests
            for found in request.resource_spans
        ]


def attributes_of(span: Span) -> dict[str, object]:
    kinds = {attribute.key: attribute.value.WhichOneof("value") for attribute in span.attributes}
    return {each.key: getattr(each.value, kinds[each.key]) for each in span.attributes if kinds[each.key]}


@contextmanager
def http_collector(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Received]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.encodings.append(self.headers["Content-Encoding"])
            if received.encodings[-1] == "gzip":
                body = gzip.decompress(body)
            received.asked += 1
            if received.hangs_after is not None and received.asked > received.hangs_after:
                received.over.wait()
                self.close_connection = True
                return
            if received.raw is not None:
                self.wfile.write(received.raw)
                self.close_connection = True
                return
            status = received.after.pop(0) if received.after else received.status
            if status == 200:
                received.take(ExportTraceServiceRequest.FromString(body))
            else:
                received.came.set()
            if received.asked > received.prompt:
                received.answer.wait()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(received.body)), **received.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(received.body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  a client that has gone
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    received.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield received
    finally:
        received.answer.set()
        received.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_collector(port: int = 0) -> Iterator[Received]:
    received = Received()

    class Service(TraceServiceServicer):
        def Export(  # noqa: N802  grpc's name for it
            self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
        ) -> ExportTraceServiceResponse:
            received.asked += 1
            if received.code is not None:
                context.set_trailing_metadata(received.trailers)
                context.abort(received.code, "as told")
            received.take(request)
            return ExportTraceServiceResponse()

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_TraceServiceServicer_to_server(Service(), server)
        received.endpoint = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        server.start()
        try:
            yield received
        finally:
            server.stop(0).wait()


@contextmanager
def silent_collector() -> Iterator[str]:
    """Yield the endpoint of one that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def nobody() -> Iterator[str]:
    """Yield an endpoint that refuses connections: its port is taken, but nobody listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
