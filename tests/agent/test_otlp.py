"""OTLP: what arrives at a real receiver, and what is said of one that does not take it."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

from receivers import Received, attributes_of, grpc_collector, http_collector, nobody, silent_collector
from sw_agent import _ids
from sw_agent._threads import AT_ONCE, LONGEST_WORK
from sw_agent.export import otlp
from sw_agent.export.otlp import OtlpOutput
from sw_agent.export.output import Outcome
from sw_agent.export.quiet import on_our_own
from tls import TLS


@pytest.fixture
def collector() -> Iterator[Received]:
    with http_collector() as received:
        yield received


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Callable[..., OtlpOutput]]:
    opened: list[OtlpOutput] = []

    def output(endpoint: str, protocol: str = "http/protobuf", **changed: Any) -> OtlpOutput:
        path = "/v1/traces" if protocol == "http/protobuf" else ""
        settings = {
            "endpoint": endpoint + path,
            "protocol": protocol,
            "export_timeout": 30.0,
            "path": str(tmp_path / "store.db"),
            "name": "shop",
            "spool_size": 1 << 20,
            "spool_age": 3600.0,
        }
        said: list[str] = []
        opened.append(OtlpOutput(SimpleNamespace(**{**settings, **changed}), said.append))  # type: ignore[arg-type]
        opened[-1].said = said  # type: ignore[attr-defined]
        return opened[-1]

    output.opened = opened  # type: ignore[attr-defined]
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


def outcome_of(output: OtlpOutput, batch: list[ReadableSpan], seconds: float = 30, ending: bool = False) -> Outcome:
    outcome = Outcome()
    with on_our_own():
        output.send(batch, outcome, otlp.monotonic() + seconds, ending)
    return outcome


def send(output: OtlpOutput, batch: list[ReadableSpan]) -> list[tuple[int, str, str]]:
    return [(loss.count, loss.reason, loss.detail) for loss in outcome_of(output, batch).losses]


def end_round(output: OtlpOutput, seconds: float = 30, ending: bool = False) -> Outcome:
    with on_our_own():
        return output.end_round(otlp.monotonic() + seconds, ending)


def test_spans_arrive_by_http(collector: Received, outputs: Callable[..., OtlpOutput]) -> None:
    assert send(outputs(collector.endpoint), spans("a", "b", size=3)) == []
    assert collector.names == ["a", "b"]
    span = collector.spans[0]
    assert (span.kind, span.status.message, attributes_of(span)) == (Span.SPAN_KIND_CLIENT, "a", {"size": 3})
    assert collector.resources() == [{"service.name": "shop"}]


@pytest.mark.parametrize("ending", [False, True])
def test_other_threads_can_run_while_a_batch_is_encoded_unless_the_program_waits(
    collector: Received, outputs: Callable[..., OtlpOutput], monkeypatch: pytest.MonkeyPatch, ending: bool
) -> None:
    breaths: list[float] = []
    monkeypatch.setattr("sw_agent._threads.sleep", breaths.append)
    monkeypatch.setattr("sw_agent._threads.monotonic", count(step=LONGEST_WORK).__next__)
    outputs(collector.endpoint).send(spans(*["a"] * 200), Outcome(), time.monotonic() + 60, ending)
    assert len(collector.names) == 200
    assert len(breaths) == (0 if ending else 200 // AT_ONCE // 2)


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
    assert (count, reason) == (2, "refused by the collector")
    assert detail.startswith(f"{collector.endpoint}/v1/traces: {status} ")


# What may pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sw_agent.export.otlp.monotonic", lambda: time.monotonic() + clock.ahead)
    monkeypatch.setattr("sw_agent.export.otlp.sleep", clock.sleep)
    return clock


class Clock:
    """The time of an output, which goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(round(seconds, 1))
        self.ahead += seconds


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_a_collector_does_not_take_for_now_waits_in_the_spool_and_is_sent_once_when_it_is_back(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock, status: int
) -> None:
    output = outputs(collector.endpoint)
    collector.status = status
    outcome = outcome_of(output, spans("a", "b"))
    assert (outcome.done, outcome.spooled, outcome.losses) == (2, 2, [])
    assert output.waits
    collector.status = 200
    clock.ahead += 60
    assert end_round(output).resent == 2
    assert end_round(output).resent == 0
    assert collector.names == ["a", "b"]
    assert not output.waits


def test_a_collector_that_has_failed_is_left_alone_longer_each_time(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    output = outputs(collector.endpoint)
    collector.status = 503
    outcome_of(output, spans("a"))
    waited = []
    for asked in range(1, 10):
        waited.append(0.0)
        while collector.asked == asked:
            clock.ahead += 0.5
            waited[-1] += 0.5
            end_round(output)
    assert waited == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("retry_after", "shortest", "longest"),
    [
        ("7", 6, 8),
        ("{in_20_seconds}", 18, 22),
        ("99999999999999", 0.4, 0.6),
        ("4000", 599, 601),
        ("soon", 0.4, 0.6),
        ("-5", 0.4, 0.6),
        ("Mon, 99 Foo", 0.4, 0.6),
    ],
)
def test_a_collector_is_left_alone_as_long_as_it_asks_for(
    collector: Received, outputs: Callable[..., OtlpOutput], retry_after: str, shortest: float, longest: float
) -> None:
    output = outputs(collector.endpoint)
    collector.status = 503
    collector.headers["Retry-After"] = retry_after.format(in_20_seconds=formatdate(time.time() + 20, usegmt=True))
    before = time.monotonic()
    outcome_of(output, spans("a"))
    assert shortest <= output._not_before - before
    assert output._not_before - time.monotonic() <= longest


def test_a_collector_that_asks_for_patience_is_asked_again_before_the_program_ends(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    output = outputs(collector.endpoint)
    collector.after = [503, 503]
    outcome = outcome_of(output, spans("a"), seconds=5, ending=True)
    assert (outcome.delivered, outcome.spooled) == (1, 0)
    assert collector.names == ["a"]
    assert clock.slept == [0.5, 1.0]


def test_the_end_of_the_program_does_not_wait_for_a_collector_longer_than_there_is_time(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    output = outputs(collector.endpoint)
    collector.status = 503
    outcome = outcome_of(output, spans("a"), seconds=1.2, ending=True)
    assert (outcome.done, outcome.spooled) == (1, 1)
    assert clock.slept == [0.5]


def test_the_end_of_the_program_does_not_wait_for_a_collector_that_is_not_there(
    outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    with nobody() as endpoint:
        outcome = outcome_of(outputs(endpoint), spans("a"), ending=True)
    assert (outcome.done, outcome.spooled) == (1, 1)
    assert clock.slept == []


def test_without_a_spool_what_is_not_taken_is_left_where_it_was(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    output = outputs(collector.endpoint, spool_size=0)
    collector.status = 503
    assert outcome_of(output, spans("a")).done == 0
    assert outcome_of(output, spans("a")).done == 0
    assert collector.asked == 1
    collector.status = 200
    clock.ahead += 60
    assert outcome_of(output, spans("a")).delivered == 1


@pytest.mark.parametrize("raw", [b"", b"\x00\xffgarbage\r\n\r\n", b"HTTP/1.1 2"])
def test_a_collector_that_closes_or_answers_garbage_is_tried_again_later(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock, raw: bytes
) -> None:
    output = outputs(collector.endpoint)
    assert outcome_of(output, spans("a")).delivered == 1
    collector.raw = raw
    assert outcome_of(output, spans("b")).spooled == 1
    collector.raw = None
    clock.ahead += 60
    assert end_round(output).resent == 1
    assert collector.names == ["a", "b"]


def test_an_answer_that_is_no_otlp_is_an_answer(collector: Received, outputs: Callable[..., OtlpOutput]) -> None:
    collector.body = b"<html>\xff" * 100_000
    output = outputs(collector.endpoint)
    for name in ("a", "b"):
        assert outcome_of(output, spans(name)).delivered == 1


def test_what_the_collector_rejects_of_a_batch_is_counted(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    rejected = ExportTracePartialSuccess(rejected_spans=1, error_message="too old")
    collector.body = ExportTraceServiceResponse(partial_success=rejected).SerializeToString()
    outcome = outcome_of(outputs(collector.endpoint), spans("a", "b"))
    assert outcome.delivered == 1
    assert [(loss.count, loss.reason) for loss in outcome.losses] == [(1, "refused by the collector")]
    assert outcome.losses[0].detail.endswith(": too old")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_no_delivery(collector: Received, outputs: Callable[..., OtlpOutput], status: int) -> None:
    collector.status = status
    collector.headers["Location"] = f"{collector.endpoint}/elsewhere"
    ((count, reason, detail),) = send(outputs(collector.endpoint), spans("a"))
    assert (count, reason) == (1, "refused by the collector")
    assert f": {status} " in detail


def test_a_certificate_that_nobody_trusts_keeps_the_spans_in_the_spool(
    outputs: Callable[..., OtlpOutput], clock: Clock, tls: TLS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with http_collector(tls=tls.server) as received:
        output = outputs(received.endpoint.replace("127.0.0.1", "localhost"))
        assert outcome_of(output, spans("a")).spooled == 1
        (said,) = output.said  # type: ignore[attr-defined]
        assert "certificate verify failed" in said
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", tls.certificate)
        trusting = outputs(received.endpoint.replace("127.0.0.1", "localhost"))
        assert end_round(trusting).resent == 1
        assert received.names == ["a"]


def test_a_certificate_that_is_not_there_keeps_the_spans_in_the_spool(
    outputs: Callable[..., OtlpOutput], monkeypatch: pytest.MonkeyPatch, tls: TLS
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")
    with http_collector(tls=tls.server) as received:
        assert outcome_of(outputs(received.endpoint), spans("a")).spooled == 1


def test_what_grpc_says_may_pass_waits_in_the_spool(outputs: Callable[..., OtlpOutput], clock: Clock) -> None:
    with grpc_collector() as received:
        output = outputs(received.endpoint, protocol="grpc")
        received.code = grpc.StatusCode.UNAVAILABLE
        assert outcome_of(output, spans("a")).spooled == 1
        received.code = None
        clock.ahead += 60
        assert end_round(output).resent == 1
        assert received.names == ["a"]


def test_grpc_is_left_alone_as_long_as_it_asks_for(outputs: Callable[..., OtlpOutput]) -> None:
    delay = RetryInfo(retry_delay=Duration(seconds=17))
    with grpc_collector() as received:
        output = outputs(received.endpoint, protocol="grpc")
        received.code = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert send(output, spans("a"))[0][:2] == (1, "refused by the collector")
        received.trailers = (("google.rpc.retryinfo-bin", delay.SerializeToString()),)
        before = time.monotonic()
        assert outcome_of(output, spans("b")).spooled == 1
        assert output._not_before - before > 16
        assert output._not_before - time.monotonic() < 18


def test_what_grpc_refuses_is_lost_and_said(outputs: Callable[..., OtlpOutput]) -> None:
    with grpc_collector() as received:
        received.code = grpc.StatusCode.INVALID_ARGUMENT
        ((count, reason, detail),) = send(outputs(received.endpoint, protocol="grpc"), spans("a", "b"))
    assert (count, reason) == (2, "refused by the collector")
    assert detail.endswith("INVALID_ARGUMENT: as told")


def test_what_is_in_the_spool_is_sent_by_the_next_output_of_the_same_service_only(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    collector.status = 503
    assert outcome_of(outputs(collector.endpoint), spans("a")).spooled == 1
    collector.status = 200
    assert end_round(outputs(collector.endpoint, name="another")).resent == 0
    assert end_round(outputs(collector.endpoint)).resent == 1
    assert collector.names == ["a"]


def test_what_the_collector_refuses_later_leaves_the_spool_and_is_counted(
    collector: Received, outputs: Callable[..., OtlpOutput], clock: Clock
) -> None:
    output = outputs(collector.endpoint)
    collector.status = 503
    outcome_of(output, spans("a", "b"))
    collector.status = 400
    clock.ahead += 60
    outcome = end_round(output)
    assert [(loss.count, loss.reason) for loss in outcome.spool_losses] == [(2, "refused by the collector")]
    assert not output.waits


def test_a_batch_is_divided_where_it_would_be_too_large_for_a_collector(
    collector: Received, outputs: Callable[..., OtlpOutput]
) -> None:
    batch = spans(*"abcdefgh", text="x" * 300_000)
    assert outcome_of(outputs(collector.endpoint), batch).delivered == 8
    assert collector.names == list("abcdefgh")
    assert max(request.ByteSize() for request in collector.requests) < 1 << 20


def test_nobody_there_is_said_in_one_short_line(outputs: Callable[..., OtlpOutput], tmp_path: Path) -> None:
    with nobody() as endpoint:
        output = outputs(endpoint)
        outcome_of(output, spans("a"))
        assert output.said == [  # type: ignore[attr-defined]
            f"spans wait in {tmp_path}/store.db for the collector {endpoint}/v1/traces: [Errno 111] Connection refused"
        ]


def test_a_batch_has_no_more_than_its_time(outputs: Callable[..., OtlpOutput]) -> None:
    with silent_collector() as endpoint:
        output = outputs(endpoint, export_timeout=0.3)
        begun = time.monotonic()
        assert outcome_of(output, spans("a")).spooled == 1
        assert time.monotonic() - begun < 30
        assert "timed out" in output.said[0]  # type: ignore[attr-defined]


# What it does not do to the program


def test_a_connection_is_kept_and_renewed_when_it_turns_out_dead(outputs: Callable[..., OtlpOutput]) -> None:
    with http_collector() as first:
        output = outputs(first.endpoint)
        assert send(output, spans("a")) == []
        output._wire._session.close()  # type: ignore[attr-defined]
        assert send(output, spans("b")) == []
        assert first.names == ["a", "b"]


def test_sending_says_nothing_in_the_log_of_the_program(
    collector: Received, outputs: Callable[..., OtlpOutput], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        collector.status = 500
        send(outputs(collector.endpoint), spans("a"))
        with nobody() as endpoint:
            output = outputs(endpoint)
            send(output, spans("\ud800", k=10**40))
        with silent_collector() as endpoint:
            send(outputs(endpoint, export_timeout=0.1), spans("a"))
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


@pytest.mark.parametrize("answers", [[200], [503], []])
def test_what_is_closed_is_gone_at_once_also_after_a_refusal(
    collector: Received, outputs: Callable[..., OtlpOutput], answers: list[int]
) -> None:
    """Where the garbage collector had to find a connection, it might do so in a thread that is ending."""
    gc.collect()
    gc.disable()
    try:
        with nobody() as endpoint:
            collector.after = list(answers)
            output = outputs(collector.endpoint if answers else endpoint)
            outputs.opened.remove(output)  # type: ignore[attr-defined]
            outcome_of(output, spans("a"))
            pools = [weakref.ref(adapter.poolmanager) for adapter in output._wire._session.adapters.values()]
            assert all(pool() is not None for pool in pools)
            output.close()
            del output
            assert [pool() for pool in pools] == [None] * len(pools)
    finally:
        gc.enable()
