"""The agent's span is the SDK's in all that can be seen of it, also where limits, odd values and misuse are about."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider, _Span
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from compiled import needs_a_compiler
from sw_agent._config import load
from sw_agent._sdk_provider import AgentProvider
from sw_agent._sdk_span import AgentSpan, _plain_copy, plain_copy, started, suits
from sw_agent.export.pipeline import Pipeline

CONTEXT = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1))
OTHER = SpanContext(9, 10, is_remote=True)
PARTS = ("name", "context", "kind", "parent", "start_time", "end_time")


class Text(str):
    """A text of the program's own."""


class Dict(dict):  # type: ignore[type-arg]
    """A dict of the program's own."""


class Integer(int):
    """An integer of the program's own."""


class Number(float):
    """A number of the program's own."""


class Unspeakable:
    """Nothing that can be an attribute."""

    __slots__ = ()


texts = st.sampled_from(["a", "b", "c", "longer", ""])
plain: Any = st.one_of(texts, st.sampled_from([True, 1, 2**70, 2.5]))
odd: Any = st.one_of(
    st.sampled_from([None, b"abc", Text("longer"), Unspeakable()]),
    st.lists(plain, max_size=3),
    st.dictionaries(texts, plain, max_size=2),
)
values = st.one_of(plain, plain, plain, odd)
keys: Any = st.one_of(texts, texts, texts, st.sampled_from([Text("a"), None, 5]))
attributes = st.one_of(
    st.none(),
    st.dictionaries(texts, plain, max_size=4),
    st.dictionaries(st.sampled_from("abcd"), plain, min_size=2),
    st.dictionaries(st.sampled_from("abc"), values),
    st.dictionaries(keys, values, min_size=1, max_size=4),
)
few = st.sampled_from([None, 0, 1, 2, 3])

limits = st.just(SpanLimits()) | st.builds(
    SpanLimits,
    max_span_attributes=few,
    max_events=few,
    max_links=few,
    max_event_attributes=few,
    max_link_attributes=few,
    max_span_attribute_length=few | st.none(),
)
steps = st.lists(
    st.one_of(
        *[st.tuples(st.just("set_attribute"), st.tuples(keys, values))] * 4,
        st.tuples(st.just("set_attributes"), st.tuples(attributes.filter(bool))),
        st.tuples(st.just("add_event"), st.tuples(texts, attributes, st.just(5))),
        st.tuples(st.just("add_link"), st.tuples(st.just(OTHER), attributes)),
        st.tuples(st.just("update_name"), st.tuples(texts)),
        st.tuples(st.just("set_status"), st.tuples(st.sampled_from([Status(StatusCode.OK), StatusCode.ERROR]))),
        st.tuples(st.just("end"), st.tuples(st.integers(6, 9))),
        st.tuples(st.just("start"), st.tuples(st.just(4))),
    ),
    min_size=3,
    max_size=12,
)


class Processors:
    """What the SDK calls when a span begins and ends: as with the agent's pipeline alone."""

    def __init__(self) -> None:
        pipeline = Pipeline(load({}))
        self._span_processors = (pipeline,)
        self.exported: list[Any] = []
        pipeline.note = self.on_start  # type: ignore[method-assign]
        pipeline.queue = self.on_end  # type: ignore[method-assign]

    def on_start(self, span: object, parent_context: object = None) -> None:
        """Nothing."""

    def _on_ending(self, span: object) -> None:
        """Nothing."""

    def on_end(self, span: object, _span_id: int = 0) -> None:
        """Take what has ended."""
        self.exported.append(span)


class Said(logging.Handler):
    """What the SDK has complained of."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def tracer_with(limits: SpanLimits, processors: object) -> Any:
    tracer: Any = TracerProvider(shutdown_on_exit=False, span_limits=limits).get_tracer("x")
    tracer.span_processor = processors
    return tracer


def started_with(limits: SpanLimits, processors: object, attributes: Any) -> Any:
    tracer = tracer_with(limits, processors)
    return started(tracer, "name", CONTEXT, OTHER, SpanKind.CLIENT, attributes, 4, True, True, None)


def fixes_attributes() -> bool:
    """Return whether this SDK's spans have attributes that cannot be changed when they have ended, as ours do."""
    span: Any = TracerProvider(shutdown_on_exit=False).get_tracer("x").start_span("name")
    span.end()
    return bool(span._attributes._immutable)


FIXES_ATTRIBUTES = fixes_attributes()


def seen_of(span: Any) -> object:
    dropped = span.dropped_attributes, span.dropped_events, span.dropped_links
    parts = [getattr(span, part) for part in PARTS]
    events = [(event.name, list(event.attributes.items()), event.timestamp) for event in span.events]
    links = [(link.context, list(link.attributes.items())) for link in span.links]
    status = (span.status.status_code, span.status.description)
    is_fixed = FIXES_ATTRIBUTES and span._attributes._immutable
    return list(span.attributes.items()), is_fixed, dropped, events, links, status, parts


def lived(span: Any, processors: Processors, steps: list[Any]) -> object:
    """Return all that can be seen of a span's life, of what is exported and of what is logged."""
    logger, said = logging.getLogger("opentelemetry"), Said()
    logger.addHandler(said)
    results: list[Any] = []
    try:
        if not isinstance(span, AgentSpan):  # which has started when it is there
            span.start(4)
        for name, arguments in steps:
            try:
                results.append(getattr(span, name)(*arguments))
            except Exception as error:
                results.append(repr(error))
    finally:
        logger.removeHandler(said)
    return results, said.lines, span.is_recording(), seen_of(span), list(map(seen_of, processors.exported))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    yield
    logger.propagate = True


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(limits, attributes, steps)
@example(SpanLimits(max_span_attributes=2), {"a": 1, "b": 2, "c": 3}, [("set_attribute", ("d", 4))])
def test_a_span_lives_as_the_sdks_does(limits: SpanLimits, attributes: Any, steps: list[Any]) -> None:
    lives = []
    for own in (True, False):
        processors = Processors()
        tracer = tracer_with(limits, processors)
        try:
            if own:
                span: Any = started_with(limits, processors, attributes)
            else:
                span = _Span(
                    "name",
                    CONTEXT,
                    OTHER,
                    tracer.sampler,
                    resource=tracer.resource,
                    attributes=attributes,
                    kind=SpanKind.CLIENT,
                    span_processor=processors,  # type: ignore[arg-type]
                    limits=limits,
                )
            lives.append(lived(span, processors, steps))
        except Exception as error:  # older SDKs raise at what newer ones leave out
            lives.append(repr(error))
    assert lives[0] == lives[1]


PLAIN = {"text": "a", "truth": True, "integer": 2**70, "number": 2.5}
NOT_PLAIN = [
    Dict(PLAIN),
    list(PLAIN),
    *({**PLAIN, key: 1} for key in ("", Text("a"), None, 5)),
    *({**PLAIN, "a": value} for value in (None, b"", (), [1], {}, Text("a"), Integer(1), Number(1))),
]


@pytest.mark.parametrize("copied", [plain_copy, pytest.param(_plain_copy, marks=needs_a_compiler)])
def test_attributes_that_need_no_check_are_copied(copied: Any) -> None:
    found = copied(PLAIN)
    assert (found, found is PLAIN) == (PLAIN, False)
    assert [copied(attributes) for attributes in NOT_PLAIN] == [None] * len(NOT_PLAIN)


def test_attributes_have_no_more_than_the_sdks() -> None:
    span = started_with(SpanLimits(), Processors(), {"a": 1})
    with pytest.raises(AttributeError, match="'Attributes' object has no attribute 'missing'"):
        span._attributes.missing  # noqa: B018
    assert span._attributes._lock is span._attributes._lock


class Listener(SpanProcessor):
    """Hears of spans."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_start(self, span: Any, parent_context: object = None) -> None:
        self.heard.append("start")

    def on_end(self, span: Any) -> None:
        self.heard.append("end")


@pytest.mark.parametrize("when", ["at first", "while the span is open"])
@pytest.mark.parametrize("beside", [(), (Pipeline(load({})),)], ids=["alone", "beside the pipeline"])
def test_all_who_listen_hear_of_a_span(when: str, beside: tuple[Any, ...]) -> None:
    provider, listener = AgentProvider(load({})), Listener()
    for processor in (*beside, *[listener] * (when == "at first")):
        provider.add_span_processor(processor)
    span = provider.get_tracer("x").start_span("name")
    assert type(span) is AgentSpan
    if when != "at first":
        provider.add_span_processor(listener)
    span.end()
    assert listener.heard == (["start", "end"] if when == "at first" else ["end"])


def test_this_sdk_is_one_that_it_can_stand_for() -> None:
    assert suits(tracer_with(SpanLimits(), Processors()))


def test_what_is_made_later_in_the_sdk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Span.__init__

    def with_one_more(span: Any, *args: Any, **kwargs: Any) -> None:
        made(span, *args, **kwargs)
        span._of_another_version = 1

    monkeypatch.setattr(_Span, "__init__", with_one_more)
    assert not suits(tracer_with(SpanLimits(), Processors()))
