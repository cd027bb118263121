"""OTLP, by OpenTelemetry's own exporters: http/protobuf, or grpc."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from time import monotonic

from opentelemetry.sdk.trace.export import SpanExportResult

from . import quiet
from .pipeline import Loss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from .._config import Config
    from .otlp_session import Session
    from .pipeline import Rest

DEFAULT_ENDPOINTS = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318/v1/traces"}
FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
FIRST_PAUSE = 0.5  # seconds before a batch is sent again, doubled each time


class OtlpOutput:
    """Sends spans to a collector, each batch within `timeout` seconds; what it does not take is lost, and said.

    `rest` waits for better times between two attempts.
    """

    def __init__(self, config: Config, timeout: float, rest: Rest) -> None:
        self._endpoint = config.endpoint or DEFAULT_ENDPOINTS[config.protocol]
        self._timeout = timeout
        self._protocol = config.protocol
        self._session: Session | None = None
        with quiet.without_thread_pool():
            self._exporter = self._grpc() if self._protocol == "grpc" else self._http()
        self._rest = rest
        _keep_off_the_random_numbers_of_the_program()
        quiet.silence_libraries()

    def send(self, spans: Sequence[ReadableSpan]) -> list[Loss]:
        """Send one batch; again, while the collector says that it is worth it and there is time."""
        deadline = monotonic() + self._timeout
        pause = FIRST_PAUSE
        interrupted = False
        while True:
            detail, again = self._try(spans)
            if detail is None:
                return []
            if not again or interrupted or monotonic() + pause > deadline:
                break
            interrupted = not self._rest(pause)  # then it tries a last time
            pause *= 2
        return self._loss(spans, detail, interrupted and again)

    def close(self) -> None:
        """Close the connection; not grpc's, which would stop its library, and a fork in the midst of that may hang."""
        if self._protocol != "grpc":
            self._exporter.shutdown()

    def _try(self, spans: Sequence[ReadableSpan]) -> tuple[str | None, bool]:
        """Send once; return why it failed, or None, and whether the same might succeed later."""
        quiet.last_message()
        if self._session is not None:
            self._session.refusal = None
        try:
            if self._exporter.export(spans) is SpanExportResult.SUCCESS:
                return None, False
            detail = quiet.last_message()
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        refusal = self._session and self._session.refusal
        if refusal:
            return str(refusal), refusal.may_pass
        return detail, False

    def _loss(self, spans: Sequence[ReadableSpan], detail: str, interrupted: bool) -> list[Loss]:
        """Say that the collector did not take the batch; where one span could not even be encoded, send the others."""
        from .encoding import encodable

        if self._session is None or self._session.refusal is None:
            mended, lost = encodable(spans)
            if mended is not spans:
                losses = [Loss(lost, "not encodable", detail)] if lost else []
                return losses + (self.send(mended) if mended else [])
        reason = "not taken by the collector"
        return [Loss(len(spans), reason, f"{self._endpoint}: {detail}", interrupted=interrupted)]

    def _http(self) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from .otlp_session import Session

        if any(name.endswith("_CREDENTIAL_PROVIDER") for name in os.environ):  # that brings a session of its own
            return OTLPSpanExporter(endpoint=self._endpoint, timeout=self._timeout)
        self._session = Session()
        return OTLPSpanExporter(endpoint=self._endpoint, timeout=self._timeout, session=self._session)

    def _grpc(self) -> SpanExporter:
        # A forked child makes one of its own, and keeps the inherited one from being destroyed.
        made_for = os.getpid(), self._endpoint, self._timeout
        if made_for not in _grpc_exporters:
            with _grpc_that_survives_forks():
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

                _grpc_exporters[made_for] = OTLPSpanExporter(endpoint=self._endpoint, timeout=self._timeout)
        return _grpc_exporters[made_for]


_grpc_exporters: dict[tuple[int, str, float], SpanExporter] = {}


@contextmanager
def _grpc_that_survives_forks() -> Iterator[None]:
    """Switch on what grpc reads from the environment when it is imported: without, it may hang in a forked child.

    See https://github.com/grpc/grpc/blob/master/doc/fork_support.md.
    """
    if FORK_SUPPORT in os.environ:
        yield
        return
    os.environ[FORK_SUPPORT] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORK_SUPPORT, None)


def _keep_off_the_random_numbers_of_the_program() -> None:
    """Give the exporters a random generator of their own for the jitter that they compute with every batch."""
    import random

    for name, module in list(sys.modules.items()):
        if name.startswith("opentelemetry.exporter.otlp.") and getattr(module, "random", None) is random:
            module.random = random.Random()  # type: ignore[attr-defined]
