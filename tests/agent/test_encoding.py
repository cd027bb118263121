"""OTLP written by hand: the very bytes of OpenTelemetry's encoder, and no span lost for its values."""

from __future__ import annotations

import sys
from collections import OrderedDict
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from compiled import needs_a_compiler
from receivers import attributes_of
from sw_agent._config import load
from sw_agent._sdk_provider import AgentProvider, AgentTracer
from sw_agent.export import encoding
from sw_agent.export.encoding import LARGEST, LONGEST_TEXT, MOST_REMEMBERED, MOST_VALUES, Encoder

# OpenTelemetry's encoder of old left out attributes that are None, and the attributes and the schema of a scope.
RECENT = tuple(map(int, version("opentelemetry-exporter-otlp-proto-common").split(".")[:2])) >= (1, 45)

texts = st.text(max_size=200)
keys = st.text(min_size=1, max_size=20)
ids = st.integers(1, 2**64 - 1)
plain = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=200)
)
values = st.recursive(
    st.one_of(plain, st.none()) if RECENT else plain,
    lambda inner: st.one_of(st.lists(inner, max_size=4).map(tuple), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=10,
)
attributes = st.dictionaries(keys, values, max_size=6)
contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=ids,
    is_remote=st.booleans(),
    trace_flags=st.just(TraceFlags(1)),
    trace_state=st.sampled_from((None, TraceState([("a", "1")]), TraceState([("a", "1"), ("b", "x/y")]))),
)
times = st.one_of(st.none(), st.integers(0, 2**64 - 1))
events = st.builds(lambda name, found, when: Event(name, found, when), texts, attributes, st.integers(0, 2**63))
links = st.builds(Link, contexts, attributes)
statuses = st.builds(Status, st.just(StatusCode.ERROR), texts) | st.builds(Status, st.sampled_from(StatusCode))
resources = st.sampled_from(
    [Resource({}), Resource({"service.name": "a", "n": 1}), Resource({"service.name": "b"}, "https://schema")]
)
scopes = st.sampled_from(
    [
        None,
        InstrumentationScope("scope"),
        InstrumentationScope("scope", "1.0"),
        *([InstrumentationScope("other", "1", "https://schema", {"key": (1, 2)})] if RECENT else []),
    ]
)
of_any_span: dict[str, Any] = {
    "name": texts,
    "resource": resources,
    "kind": st.sampled_from(SpanKind),
    "instrumentation_scope": scopes,
}
spans = st.builds(
    ReadableSpan,
    **of_any_span,
    context=contexts,
    parent=st.none() | contexts,
    attributes=attributes,
    events=st.lists(events, max_size=3),
    links=st.lists(links, max_size=3),
    status=statuses,
    start_time=times,
    end_time=times,
)

scalars = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
some_contexts = contexts.filter(lambda context: not context.trace_state)
plain_spans = st.builds(
    ReadableSpan,
    **of_any_span,
    context=some_contexts,
    parent=st.none() | some_contexts,
    attributes=st.dictionaries(keys, scalars, max_size=10).map(lambda found: BoundedAttributes(None, found, False)),
    events=st.just(()),
    links=st.just(()),
    status=st.builds(Status, st.sampled_from(StatusCode)),
    start_time=st.integers(0, 2**64 - 1),
    end_time=st.integers(0, 2**64 - 1),
)


def encoded(batch: list[ReadableSpan], encoder: Encoder | None = None) -> bytes:
    (request,) = (encoder or Encoder()).requests(batch)
    assert (request.spans, request.lost) == (len(batch), 0)
    return request.body


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(spans, min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_bytes_are_those_of_opentelemetrys_encoder_also_from_what_is_remembered(batches: Any) -> None:
    encoder = Encoder()
    for batch in (*batches, *batches):
        assert encoded(batch, encoder) == encode_spans(batch).SerializePartialToString()


@needs_a_compiler
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(plain_spans)
def test_what_is_compiled_encodes_every_plain_span_as_the_python_code_does(span: Any) -> None:
    assert _plain_spans().encode(span) == Encoder()._span(span)


@needs_a_compiler
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(spans)
def test_what_is_compiled_encodes_any_other_span_as_the_python_code_does_or_not_at_all(span: Any) -> None:
    assert _plain_spans().encode(span) in (None, Encoder()._span(span))


class Text(str):
    __slots__ = ()


class Number(int):
    pass


@needs_a_compiler
@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"_attributes": {"key": value}}
            for value in (Text("a"), Number(1), 2**63, -(2**63) - 1, "\ud800", None, b"")
        ),
        *({"_attributes": {key: 1}} for key in (Text("a"), "\ud800", 1, None)),
        *({"_attributes": value} for value in (None, (), [("a", 1)], OrderedDict(a=1), BoundedAttributes(0, {"a": 1}))),
        *({"_name": name} for name in (Text("a"), "\ud800", None, b"a")),
        *(
            {"_context": value}
            for value in (None, (), (1, 2), (-1, 2, False, 1, None, True), (1, -2, False, 1, None, True))
        ),
        *(
            {"_context": (first, second, False, 1, None, True)}
            for first, second in ((2**128, 1), (1, 2**64), ("a", 1), (Number(1), 1), (1, Number(1)))
        ),
        *({"_parent": value} for value in ((), (1, 2), (1, 2, None, 1, None, True), (1, None, False, 1, None, True))),
        *({"_kind": kind} for kind in (None, 1, SimpleNamespace(_value_=-1), SimpleNamespace(_value_=127))),
        *({when: time} for when in ("_start_time", "_end_time") for time in (None, -1, 2**64, 1.5)),
        *({"_events": value} for value in (None, [], (1,), BoundedList(1))),
        *({"_links": value} for value in (None, [], (1,), BoundedList(1))),
        *({"_status": value} for value in (None, Status(StatusCode.ERROR, "why"), Status(StatusCode.ERROR, ""))),
        {"_status": SimpleNamespace(_status_code=None, _description=None)},
    ],
)
def test_what_is_not_plain_is_left_to_the_python_code(changed: dict[str, Any]) -> None:
    span = made({"a": 1})
    assert _plain_spans().encode(span) is not None
    vars(span).update(changed)
    assert _plain_spans().encode(span) is None
    for name in changed:
        delattr(span, name)
    assert _plain_spans().encode(span) is None


@needs_a_compiler
def test_what_is_compiled_keeps_nothing() -> None:
    values = {"text": "x" * 5000, "n": 10**15, "f": 1.5, "b": True}
    attributes = [{**values, "odd": odd} for odd in (1, 2.5, [1], "\ud800")]
    batch = [made(BoundedAttributes(None, found, False)) for found in attributes]
    known: set[Any] = {"work", *values, values["text"], "odd", int, float, bool}

    def look() -> None:
        for span in batch:
            _plain_spans().encode(span)
            vars(span)["_context"] = (2**127 + 2**65, 2**63, *span.context[2:])
            of_all = (span.resource, span.instrumentation_scope, known, known, known)
            answers = {_plain_spans().is_known(span, of_all[:count]) for count in range(5)}
            assert (_plain_spans().is_known(span, of_all), answers) == (span is batch[0] or span is batch[1], {False})
            _plain_spans().plain_copy({"a": 1, "b": ()})

    def references() -> list[int]:
        held: list[Any] = [value for span in batch for value in (*vars(span).values(), span._attributes._dict)]
        return list(map(sys.getrefcount, held))

    look()
    before, blocks = references(), sys.getallocatedblocks()
    for _ in range(1000):
        look()
    assert sys.getallocatedblocks() - blocks < 100
    assert [after - count for count, after in zip(before, references(), strict=True) if after - count >= 1000] == []


@needs_a_compiler
def test_spans_of_the_agents_own_tracer_are_plain() -> None:
    provider = AgentProvider(load({}))
    recorded: list[ReadableSpan] = []
    provider._active_span_processor.on_end = recorded.append  # type: ignore[method-assign]
    tracer = provider.get_tracer("tests")
    assert isinstance(tracer, AgentTracer)
    with tracer.start_as_current_span("outer", attributes={"a": 1}), tracer.start_as_current_span("inner"):
        pass
    for span in recorded:
        span._events = span._links = ()  # as the pipeline leaves them
    assert [_plain_spans().encode(span) for span in recorded] == [Encoder()._span(span) for span in recorded]


def _plain_spans() -> Any:
    from sw_agent.export import _plain_spans

    return _plain_spans


@pytest.mark.parametrize("limit", [None, "2"])
def test_so_are_those_of_spans_that_were_recorded(monkeypatch: pytest.MonkeyPatch, limit: str | None) -> None:
    for kind in ("SPAN_ATTRIBUTE", "SPAN_EVENT", "SPAN_LINK", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE"):
        if limit:
            monkeypatch.setenv(f"OTEL_{kind}_COUNT_LIMIT", limit)
    provider = TracerProvider(shutdown_on_exit=False, resource=Resource({"service.name": "shop"}))
    recorded: list[ReadableSpan] = []
    provider._active_span_processor.on_end = recorded.append  # type: ignore[method-assign]
    numbers = {str(number): number for number in range(5)}
    other = SpanContext(5, 6, is_remote=True)
    for name in ("a", "b"):
        with provider.get_tracer("tests", "1.2").start_as_current_span(
            name, attributes=numbers, links=[Link(other, numbers)] * 5
        ) as span:
            for number in range(5):
                span.add_event(str(number), numbers)
            with provider.get_tracer("others").start_as_current_span("inner", kind=SpanKind.CLIENT):
                pass
    assert encoded(recorded) == encode_spans(recorded).SerializePartialToString()


@pytest.mark.parametrize("compiled", [True, False])
def test_many_different_values_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(encoding, "encode", lambda _span: None)
    encoder = Encoder()
    for number in range(3):
        batch = [
            made({f"key {number}.{n}": "x", "id": f"{number}.{n}"}, name=f"{number}.{n}")
            for n in range(MOST_REMEMBERED)
        ]
        assert encoded(batch, encoder) == encode_spans(batch).SerializePartialToString()
    assert len(encoder._keys) <= MOST_REMEMBERED
    assert len(encoder._names) <= MOST_REMEMBERED
    assert all(len(pairs) <= MOST_VALUES for pairs in encoder._keys.values())


def test_a_resource_is_not_taken_for_another_one_that_has_its_place_in_memory() -> None:
    encoder = Encoder()
    for number in range(200):
        batch = [made({}, resource=Resource({"number": number}))]
        assert encoded(batch, encoder) == encode_spans(batch).SerializePartialToString()


def made(attributes: Any, **more: Any) -> ReadableSpan:
    fields: dict[str, Any] = {
        "name": "work",
        "context": SpanContext(1, 2, is_remote=False),
        "resource": Resource({}),
        "start_time": 1,
        "end_time": 2,
        "instrumentation_scope": InstrumentationScope("tests"),
        **more,
    }
    return ReadableSpan(attributes=attributes, **fields)


def test_what_was_dropped_of_a_link_is_counted() -> None:
    link = Link(SpanContext(3, 4, is_remote=False), BoundedAttributes(1, {"a": 1, "b": 2}))
    batch = [made({}, links=[link])]
    assert encoded(batch, Encoder()) == encode_spans(batch).SerializePartialToString()
    assert decoded(batch)[0].links[0].dropped_attributes_count == 1


def test_a_span_without_a_status_has_none() -> None:
    batch = [made({}, status=None)]
    assert encoded(batch, Encoder()) == encode_spans(batch).SerializePartialToString()
    assert not decoded(batch)[0].HasField("status")


def decoded(batch: list[ReadableSpan]) -> list[Any]:
    found = []
    for request in Encoder().requests(batch):
        for resource_spans in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            found += [span for scope_spans in resource_spans.scope_spans for span in scope_spans.spans]
    return found


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Text(str):
    pass


class Number(int):
    pass


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        ("a\ud800b", "a?b"),
        (Text("x"), "x"),
        (Number(7), 7),
        (Odd(), "<Odd: RuntimeError>"),
        ({"a"}, "{'a'}"),
        pytest.param(10**5000, hex(10**5000), id="huge"),
        (True, True),
        (-1, -1),
        (0, 0),
        ("", ""),
    ],
)
def test_a_value_that_otlp_cannot_hold_becomes_text(value: Any, arrives: Any) -> None:
    (span,) = decoded([made({"value": value})])
    assert attributes_of(span) == {"value": arrives}


@pytest.mark.parametrize(
    ("odd", "arrives"), [({"name": "\ud800"}, "?"), ({"name": None}, ""), ({"name": 7}, "7"), ({"name": ""}, "")]
)
def test_a_name_that_is_no_text_becomes_one(odd: dict[str, Any], arrives: str) -> None:
    (span,) = decoded([made({}, **odd)])
    assert span.name == arrives


@pytest.mark.parametrize("time", [-5, 2**70])
def test_a_time_outside_of_64_bits_is_brought_within(time: int) -> None:
    (span,) = decoded([made({}, start_time=time)])
    assert span.start_time_unix_nano == (0 if time < 0 else 2**64 - 1)


def test_what_raises_when_it_is_looked_at_costs_no_other_span() -> None:
    class Broken:
        @property
        def trace_id(self) -> int:
            raise RuntimeError("no")

    batch = [made({}, name="a"), made({}, context=Broken()), made({}, name="b")]
    requests = list(Encoder().requests(batch))
    assert [(request.spans, request.lost) for request in requests] == [(1, 0), (1, 1), (1, 0)]
    assert [span.name for span in decoded(batch)] == ["a", "b"]


def test_a_batch_becomes_requests_that_a_collector_takes() -> None:
    batch = [made({"text": "x" * 300_000}, name=str(number)) for number in range(10)]
    requests = list(Encoder().requests(batch))
    assert sum(request.spans for request in requests) == 10
    assert max(len(request.body) for request in requests) < LARGEST + 1000
    assert [span.name for span in decoded(batch)] == [str(number) for number in range(10)]


def test_a_span_that_is_too_large_by_itself_is_cut() -> None:
    batch = [made({"text": "x" * 10_000_000, "short": "y", "bytes": b"z" * 10_000_000}, name="n" * 100_000)]
    (span,) = decoded(batch)
    found = attributes_of(span)
    assert (found["text"], found["short"], len(span.name)) == ("x" * LONGEST_TEXT, "y", LONGEST_TEXT)
    assert span.ByteSize() < LARGEST


def test_so_are_the_texts_within_its_values() -> None:
    batch = [made({"text": "x" * 10_000_000, "map": {"key": "y" * 100_000}})]
    (span,) = decoded(batch)
    (item,) = next(each for each in span.attributes if each.key == "map").value.kvlist_value.values
    assert (item.key, item.value.string_value) == ("key", "y" * LONGEST_TEXT)
