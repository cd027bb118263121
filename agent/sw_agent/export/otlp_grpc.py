"""OTLP over grpc, by OpenTelemetry's exporter: it brings address, headers, TLS and compression, and its stub."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Any

from .refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

SETTINGS = {"GRPC_ENABLE_FORK_SUPPORT": "1", "GRPC_VERBOSITY": "ERROR"}
# What OTLP says may pass: https://opentelemetry.io/docs/specs/otlp/#failures. RESOURCE_EXHAUSTED only where the answer
# says when.
MAY_PASS = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
RETRY_INFO = "google.rpc.retryinfo-bin"

# By process, since a forked child makes one of its own, and keeps the inherited one from being destroyed.
_exporters: dict[tuple[int, str, float], OTLPSpanExporter] = {}


class GrpcWire:
    """Sends encoded requests to the collector's service."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        self._made_for = os.getpid(), endpoint, timeout
        if self._made_for not in _exporters:
            _exporters[self._made_for] = self._exporter()

    def post(self, body: bytes, timeout: float) -> ExportTraceServiceResponse | None:
        """Send one request and return the collector's answer.

        Raises:
            Refusal: it was not taken.
        """
        import grpc  # type: ignore[import-untyped]
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        exporter: Any = _exporters[self._made_for]
        request = ExportTraceServiceRequest.FromString(body)
        try:
            return exporter._client.Export(request=request, metadata=exporter._headers, timeout=timeout)  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            refusal = _refusal(error)
            if not refusal.answered:
                self._connect_anew()
            raise refusal from error

    def close(self) -> None:
        """Do nothing: closing the last channel would stop grpc's library, and a fork in the midst of that may hang."""

    def _connect_anew(self) -> None:
        """Replace the connection: the old one tries again by itself, but after minutes where it had to do so often."""
        old = _exporters[self._made_for]
        _exporters[self._made_for] = self._exporter()
        old.shutdown()

    def _exporter(self) -> OTLPSpanExporter:
        if "grpc" in sys.modules:
            return _make(*self._made_for[1:])
        with _settings_of_grpc():
            return _make(*self._made_for[1:])


def _make(endpoint: str, timeout: float) -> OTLPSpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, timeout=timeout)


def _refusal(error: Any) -> Refusal:
    code, wait = error.code().name, None
    retry_info = dict(error.trailing_metadata() or ()).get(RETRY_INFO)
    if retry_info is not None:
        wait = _delay(retry_info)
    passes = code in MAY_PASS or (code == "RESOURCE_EXHAUSTED" and wait is not None)
    return Refusal(
        f"{code}: {error.details()}",
        may_pass=passes,
        answered=code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"),
        wait=wait or 0.0,
    )


def _delay(retry_info: bytes) -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]

    try:
        delay = RetryInfo.FromString(retry_info).retry_delay
    except Exception:  # no collector's words
        return None
    return float(delay.seconds + delay.nanos / 1e9)


@contextmanager
def _settings_of_grpc() -> Iterator[None]:
    """Set, unless the user has, what grpc reads from the environment when it is first used.

    Without support for forks it may hang in a child (https://github.com/grpc/grpc/blob/master/doc/fork_support.md), and
    it would say on the program's stderr that a collector goes away.
    """
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
