"""OTLP, by OpenTelemetry's own exporters: http/protobuf, or grpc."""

from __future__ import annotations

import sys

from opentelemetry.sdk.trace.export import SpanExportResult

from . import quiet
from .pipeline import Loss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from .._config import Config

DEFAULT_HTTP_ENDPOINT = "http://localhost:4318"
TRACES_PATH = "/v1/traces"


class OtlpOutput:
    """Sends spans to a collector, each batch within `timeout` seconds; what it does not take is lost, and said."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._endpoint = endpoint(config)
        self._exporter = _exporter(config.protocol, self._endpoint, timeout)
        _keep_off_the_random_numbers_of_the_program()
        quiet.silence_libraries()

    def send(self, spans: Sequence[ReadableSpan]) -> list[Loss]:
        """Send one batch in one request."""
        quiet.last_message()
        try:
            if self._exporter.export(spans) is SpanExportResult.SUCCESS:
                return []
            detail = quiet.last_message()
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        return [Loss(len(spans), "not taken by the collector", f"{self._endpoint}: {detail}")]

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def endpoint(config: Config) -> str:
    """Return where spans go. What is configured is the collector's base address, as in OTEL_EXPORTER_OTLP_ENDPOINT."""
    if config.protocol == "grpc":
        return config.endpoint or "http://localhost:4317"
    base = (config.endpoint or DEFAULT_HTTP_ENDPOINT).rstrip("/")
    given_whole = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in config.sources.get("export.endpoint", "")
    return base if given_whole or base.endswith(TRACES_PATH) else base + TRACES_PATH


def _exporter(protocol: str, address: str, timeout: float) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter(endpoint=address, timeout=timeout)  # type: ignore[arg-type]
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter(endpoint=address, timeout=timeout)  # type: ignore[arg-type]


def _keep_off_the_random_numbers_of_the_program() -> None:
    """Give the exporters a random generator of their own for the jitter that they compute with every batch."""
    import random

    for name, module in list(sys.modules.items()):
        if name.startswith("opentelemetry.exporter.otlp.") and getattr(module, "random", None) is random:
            module.random = random.Random()  # type: ignore[attr-defined]
