"""OTLP: what arrives at a real receiver, and what is said of one that does not take it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

from receivers import Received, attributes_of, grpc_collector, http_collector, nobody, silent_collector
from sw_agent import _ids
from sw_agent.export.otlp import OtlpOutput
from sw_agent.export.quiet import on_our_own


@pytest.fixture
def collector() -> Iterator[Received]:
    with http_collector() as received:
        yield received


@pytest.fixture
def outputs() -> Iterator[Callable[..., OtlpOutput]]:
    opened: list[OtlpOutput] = []

    def output(
        endpoint: str,
        timeout: float = 30.0,
        protocol: str = "http/protobuf",
        rest: Callable[[float], bool] = lambda _seconds: True,
    ) -> OtlpOutput:
        path = "/v1/traces" if protocol == "http/protobuf" else ""
        config = SimpleNamespace(endpoint=endpoint + path, protocol=protocol)
        opened.append(OtlpOutput(config, timeout, rest))  # type: ignore[arg-type]
        return opened[-1]

    yield output
    for each in opened:
        each.close()


def spans(*names: str, **attributes: Any) -> list[ReadableSpan]:
    provider = TracerProvider(
        shutdown_on_exit=False,
        resource=Resource({"service.name": "shop"}),
        id_generator=_ids.IdGenerator(),  # type: ignore[arg-type]
    )
    tracer = provider.get_tracer("tests")
    made = []
    for name in names:
        span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        span.set_status(StatusCode.ERROR, name)
        span.end()
        made.append(span)
    return made  # type: ignore[return-value]


def send(output: OtlpOutput, batch: list[ReadableSpan]) -> list[tuple[int, str, str]]:
    with on_our_own():
        return [(loss.count, loss.reason, loss.detail) for loss in output.send(batch)]


def test_spans_arrive_by_http(collector: Received, outputs: Callable[..., OtlpOutput]) -> None:
    assert send(outputs(collector.endpoint), spans("a", "b", size=3)) == []
    assert collector.names == ["a", "b"]
    span = collector.spans[0]
    assert (span.kind, span.status.message, attributes_of(span)) == (Span.SPAN_KIND_CLIENT, "a", {"size": 3})
    assert collector.resources() == [{"service.name": "shop"}]


def test_spans_arrive_by_grpc(outputs: Callable[..., OtlpOutput]) -> None:
    with grpc_collector() as received:
        output = outputs(received.endpoint, protocol="grpc")
        assert send(output, spans("a", "b")) == []
        assert received.names == ["a", "b"]
        output.close()


def test_a_span_that_cannot_be_encoded_does_not_lose_its_batch(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    odd = spans(
        "odd \ud800",
        **{
            "text": "\udfff",
            "bytes": b"\xff",
            "long": 10**30,
            "none": None,
            "nested": {"k": ["\ud800"]},
            "nan": float("nan"),
        },
    )
    assert send(outputs(collector.endpoint), spans("a") + odd + spans("b")) == []
    assert collector.names == ["a", "b", "odd ?"]
    attributes = attributes_of(next(span for span in collector.spans if span.name == "odd ?"))
    assert attributes["text"] == "?"
    assert attributes["long"] == str(10**30)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_batch_that_is_refused_is_lost_and_said(
    collector: Received, outputs: Callable[..., OtlpOutput], status: int
) -> None:
    collector.status = status
    ((count, reason, detail),) = send(outputs(collector.endpoint), spans("a", "b"))
    assert (count, reason) == (2, "not taken by the collector")
    assert detail.startswith(f"{collector.endpoint}/v1/traces: {status} ")


def test_what_may_pass_is_tried_again_after_a_growing_pause(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    pauses: list[float] = []

    def rest(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 3:
            collector.status = 200
        return True

    collector.status = 503
    assert send(outputs(collector.endpoint, rest=rest), spans("a")) == []
    assert collector.names == ["a"]
    assert pauses == [0.5, 1.0, 2.0]


def test_whoever_may_not_rest_tries_a_last_time(collector: Received, outputs: Callable[..., OtlpOutput]) -> None:
    def rest(_seconds: float) -> bool:
        collector.status = 200
        return False

    collector.status = 503
    assert send(outputs(collector.endpoint, rest=rest), spans("a")) == []
    assert collector.names == ["a"]


def test_nobody_there_is_said_in_one_short_line(outputs: Callable[..., OtlpOutput]) -> None:
    with nobody() as endpoint:
        output = outputs(endpoint, rest=lambda _: False)
        ((_, reason, detail),) = send(output, spans("a"))
    assert reason == "not taken by the collector"
    assert detail == f"{endpoint}/v1/traces: [Errno 111] Connection refused"


def test_a_batch_has_no_more_than_its_time(outputs: Callable[..., OtlpOutput]) -> None:
    with silent_collector() as endpoint:
        begun = time.monotonic()
        ((count, _, detail),) = send(outputs(endpoint, timeout=0.3), spans("a"))
        assert time.monotonic() - begun < 30
    assert count == 1
    assert "timed out" in detail


def test_a_connection_is_kept_and_renewed_when_it_turns_out_dead(outputs: Callable[..., OtlpOutput]) -> None:
    with http_collector() as first:
        output = outputs(first.endpoint)
        assert send(output, spans("a")) == []
        output._session.close()  # type: ignore[union-attr]
        assert send(output, spans("b")) == []
        assert first.names == ["a", "b"]


def test_sending_says_nothing_in_the_log_of_the_program(
    collector: Received, outputs: Callable[..., OtlpOutput], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        collector.status = 500
        send(outputs(collector.endpoint), spans("a"))
        with nobody() as endpoint:
            output = outputs(endpoint, rest=lambda _: False)
            send(output, spans("\ud800", k=10**40))
        with silent_collector() as endpoint:
            send(outputs(endpoint, timeout=0.1), spans("a"))
    assert [record.name for record in caplog.records if record.name != "sw_agent"] == []


def test_the_programs_own_exporter_still_says_what_it_says(
    collector: Received, outputs: Callable[..., OtlpOutput], caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    collector.status = 400
    send(outputs(collector.endpoint), spans("a"))
    assert caplog.records == []
    exporter = OTLPSpanExporter(endpoint=collector.endpoint)
    exporter.export(spans("a"))
    exporter.shutdown()
    assert any(record.name.startswith("opentelemetry.") for record in caplog.records)


def test_sending_draws_no_number_from_the_programs_sequence(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    output = outputs(collector.endpoint)
    random.seed(42)
    expected = [random.random() for _ in range(3)]
    random.seed(42)
    found = []
    for _ in range(3):
        found.append(random.random())
        send(output, spans("a"))
    assert found == expected


def test_no_thread_is_left_behind(collector: Received, outputs: Callable[..., OtlpOutput]) -> None:
    before = threading.enumerate()
    send(outputs(collector.endpoint), spans("a"))
    new = [thread for thread in threading.enumerate() if thread not in before]
    assert [thread for thread in new if "process_request_thread" not in thread.name] == []


def test_what_opentelemetry_takes_from_the_environment_counts(
    collector: Received, outputs: Callable[..., OtlpOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    send(outputs(collector.endpoint), spans("a"))
    assert collector.encodings == ["gzip"]
